/* PCIe, NVLink and the fabric behind it. */
#include "internal.h"

#include <stdio.h>
#include <string.h>

#define THROUGHPUT_WINDOW_NS 20000000u /* nvml.h, nvmlDeviceGetPcieThroughput: a byte counter over 20 ms */

GETTER(nvmlDeviceGetCurrPcieLinkGeneration, unsigned int, gpu->pcie_generation)
GETTER(nvmlDeviceGetCurrPcieLinkWidth, unsigned int, gpu->pcie_width)
GETTER(nvmlDeviceGetMaxPcieLinkGeneration, unsigned int, gpu->pcie_max_generation)
GETTER(nvmlDeviceGetGpuMaxPcieLinkGeneration, unsigned int, gpu->pcie_max_generation)
GETTER(nvmlDeviceGetMaxPcieLinkWidth, unsigned int, gpu->pcie_max_width)
GETTER(nvmlDeviceGetPcieReplayCounter, unsigned int, gpu->pcie_replay_count)
GETTER(nvmlDeviceGetPcieLinkMaxSpeed, unsigned int, gpu->pcie_max_generation)

nvmlReturn_t nvmlDeviceGetPcieSpeed(nvmlDevice_t device, unsigned int *mbps) {
    static const unsigned int speeds[] = {0, 2500, 5000, 8000, 16000, 32000, 64000};
    ENTER(device, mbps);
    *mbps = speeds[gpu->pcie_generation < 7 ? gpu->pcie_generation : 6];
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetPcieThroughput(nvmlDevice_t device, nvmlPcieUtilCounter_t counter, unsigned int *kib_per_s) {
    ENTER(device, kib_per_s);
    CHECK(counter < NVML_PCIE_UTIL_COUNT);
    sim_sleep_ns(THROUGHPUT_WINDOW_NS); /* the call really takes that long */
    *kib_per_s = counter == NVML_PCIE_UTIL_TX_BYTES ? gpu->pcie_tx_kib_per_s : gpu->pcie_rx_kib_per_s;
    return NVML_SUCCESS;
}

uint64_t sim_link_sum(sim_gpu_ref gpu, size_t offset) {
    uint64_t sum = 0;
    for (unsigned int i = 0; i < gpu->nvlink_count; i++)
        sum += *(const volatile uint64_t *)((const volatile char *)&gpu->links[i] + offset);
    return sum;
}

#define LINK(device, link, argument)       \
    ENTER(device, argument);               \
    NEEDS(NVLINK);                         \
    CHECK((link) < gpu->nvlink_count)

nvmlReturn_t nvmlDeviceGetNvLinkState(nvmlDevice_t device, unsigned int link, nvmlEnableState_t *active) {
    LINK(device, link, active);
    *active = gpu->links[link].state == 1 ? NVML_FEATURE_ENABLED : NVML_FEATURE_DISABLED;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetNvLinkVersion(nvmlDevice_t device, unsigned int link, unsigned int *version) {
    LINK(device, link, version);
    *version = gpu->nvlink_version;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetNvLinkCapability(nvmlDevice_t device, unsigned int link,
                                           nvmlNvLinkCapability_t capability, unsigned int *result) {
    LINK(device, link, result);
    CHECK(capability < NVML_NVLINK_CAP_COUNT);
    *result = capability != NVML_NVLINK_CAP_SLI_BRIDGE;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetNvLinkErrorCounter(nvmlDevice_t device, unsigned int link,
                                             nvmlNvLinkErrorCounter_t counter, unsigned long long *value) {
    LINK(device, link, value);
    NEEDS(NVLINK_DL_ERRORS);
    switch (counter) {
    case NVML_NVLINK_ERROR_DL_REPLAY: *value = gpu->links[link].replay_errors; return NVML_SUCCESS;
    case NVML_NVLINK_ERROR_DL_RECOVERY: *value = gpu->links[link].recovery_errors; return NVML_SUCCESS;
    case NVML_NVLINK_ERROR_DL_CRC_FLIT: *value = gpu->links[link].crc_errors; return NVML_SUCCESS;
    case NVML_NVLINK_ERROR_DL_CRC_DATA:
    case NVML_NVLINK_ERROR_DL_ECC_DATA: return NVML_ERROR_NOT_SUPPORTED;
    default: return NVML_ERROR_INVALID_ARGUMENT;
    }
}

nvmlReturn_t nvmlDeviceGetNvLinkRemoteDeviceType(nvmlDevice_t device, unsigned int link,
                                                 nvmlIntNvLinkDeviceType_t *type) {
    LINK(device, link, type);
    *type = NVML_NVLINK_DEVICE_TYPE_SWITCH;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetNvLinkRemotePciInfo_v2(nvmlDevice_t device, unsigned int link, nvmlPciInfo_t *pci) {
    LINK(device, link, pci);
    memset(pci, 0, sizeof *pci);
    pci->bus = 5 + link % 4; /* the NVSwitches of the board */
    snprintf(pci->busIdLegacy, sizeof pci->busIdLegacy, "%04X:%02X:%02X.0", 0u, pci->bus & 0xffu, 0u);
    snprintf(pci->busId, sizeof pci->busId, NVML_DEVICE_PCI_BUS_ID_FMT, NVML_DEVICE_PCI_BUS_ID_FMT_ARGS(pci));
    return NVML_SUCCESS;
}
nvmlReturn_t nvmlDeviceGetNvLinkRemotePciInfo(nvmlDevice_t device, unsigned int link, nvmlPciInfo_t *pci) {
    return nvmlDeviceGetNvLinkRemotePciInfo_v2(device, link, pci);
}

nvmlReturn_t nvmlDeviceGetP2PStatus(nvmlDevice_t one, nvmlDevice_t other, nvmlGpuP2PCapsIndex_t index,
                                    nvmlGpuP2PStatus_t *status) {
    (void)index;
    ENTER(one, status);
    sim_gpu_ref second;
    nvmlReturn_t entered = sim_enter(other, status, &second);
    if (entered != NVML_SUCCESS)
        return entered;
    *status = gpu->nvlink_count ? NVML_P2P_STATUS_OK : NVML_P2P_STATUS_NOT_SUPPORTED;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetGpuFabricInfo(nvmlDevice_t device, nvmlGpuFabricInfo_t *info) {
    ENTER(device, info);
    NEEDS(FABRIC);
    memset(info, 0, sizeof *info);
    info->status = (nvmlReturn_t)gpu->fabric_status;
    info->state = (nvmlGpuFabricState_t)gpu->fabric_state;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetGpuFabricInfoV(nvmlDevice_t device, nvmlGpuFabricInfoV_t *info) {
    ENTER(device, info);
    NEEDS(FABRIC);
    unsigned int version = info->version;
    if (version == nvmlGpuFabricInfo_v2) {
        nvmlGpuFabricInfo_v2_t *older = (nvmlGpuFabricInfo_v2_t *)(void *)info;
        memset(older, 0, sizeof *older);
    } else if (version == nvmlGpuFabricInfo_v3) {
        memset(info, 0, sizeof *info);
        info->healthSummary = (unsigned char)gpu->fabric_health_summary;
    } else {
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    }
    info->version = version;
    info->status = (nvmlReturn_t)gpu->fabric_status;
    info->state = (nvmlGpuFabricState_t)gpu->fabric_state;
    info->healthMask = gpu->fabric_health_mask;
    return NVML_SUCCESS;
}
