/* GPM: metrics from two samples of hardware counters, at least 100 ms apart. */
#include "internal.h"

#include <stdlib.h>
#include <string.h>

#define SAMPLE_MAGIC UINT64_C(0x67706d73616d706c)
#define FLOOR_NS 100000000u /* nvml.h, nvmlGpmMetricsGet: the interval should be greater than 100 ms */
#define MIB 1048576.0

struct nvmlGpmSample_st {
    uint64_t magic;
    uint64_t taken_ns; /* when it was asked for: the floor is judged by this */
    uint64_t moved_ns; /* the time its integrals are of: ratios are taken over this */
    int of_instance; /* of a MIG instance: which metrics those have is unverified, here the main five */
    unsigned int links;
    uint64_t graphics_ns, sm_ns, occupancy_ns, tensor_ns, dram_ns;
    uint64_t integer_ns, dfma_ns, hmma_ns, imma_ns, fp64_ns, fp32_ns, fp16_ns;
    uint64_t pcie_tx_bytes, pcie_rx_bytes;
    uint64_t link_tx_kib[SIM_MAX_LINKS], link_rx_kib[SIM_MAX_LINKS];
};

nvmlReturn_t nvmlGpmSampleAlloc(nvmlGpmSample_t *sample) {
    CHECK(sample);
    *sample = calloc(1, sizeof **sample);
    if (*sample == NULL)
        return NVML_ERROR_MEMORY;
    (*sample)->magic = SAMPLE_MAGIC;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlGpmSampleFree(nvmlGpmSample_t sample) {
    CHECK(sample && sample->magic == SAMPLE_MAGIC);
    sample->magic = 0;
    free(sample);
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlGpmQueryDeviceSupport(nvmlDevice_t device, nvmlGpmSupport_t *support) {
    ENTER(device, support);
    VERSIONED(support, NVML_GPM_SUPPORT_VERSION);
    support->isSupportedDevice = !(gpu->not_supported & SIM_FEATURE_GPM);
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlGpmSampleGet(nvmlDevice_t device, nvmlGpmSample_t sample) {
    ENTER(device, sample);
    NEEDS(GPM);
    CHECK(sample->magic == SAMPLE_MAGIC);
    memset(sample, 0, sizeof *sample);
    sample->magic = SAMPLE_MAGIC;
    sample->taken_ns = sim_monotonic_ns();
    sample->moved_ns = gpu->moved_at_monotonic_ns ? gpu->moved_at_monotonic_ns : sample->taken_ns;
    sample->links = gpu->nvlink_count;
    sample->integer_ns = gpu->gpm_integer_ns;
    sample->dfma_ns = gpu->gpm_dfma_ns;
    sample->hmma_ns = gpu->gpm_hmma_ns;
    sample->imma_ns = gpu->gpm_imma_ns;
    sample->fp64_ns = gpu->gpm_fp64_ns;
    sample->fp32_ns = gpu->gpm_fp32_ns;
    sample->fp16_ns = gpu->gpm_fp16_ns;
    sample->graphics_ns = gpu->gpm_graphics_ns;
    sample->sm_ns = gpu->gpm_sm_ns;
    sample->occupancy_ns = gpu->gpm_occupancy_ns;
    sample->tensor_ns = gpu->gpm_tensor_ns;
    sample->dram_ns = gpu->gpm_dram_ns;
    sample->pcie_tx_bytes = gpu->pcie_tx_bytes;
    sample->pcie_rx_bytes = gpu->pcie_rx_bytes;
    for (unsigned int i = 0; i < sample->links; i++) {
        sample->link_tx_kib[i] = gpu->links[i].data_tx_kib;
        sample->link_rx_kib[i] = gpu->links[i].data_rx_kib;
    }
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlGpmMigSampleGet(nvmlDevice_t device, unsigned int instance, nvmlGpmSample_t sample) {
    ENTER(device, sample);
    NEEDS(GPM);
    CHECK(sample->magic == SAMPLE_MAGIC);
    for (unsigned int place = 0; gpu->mig_enabled && place < SIM_MAX_MIG; place++) {
        sim_mig_ref mig = &gpu->migs[place];
        if (!mig->present || mig->gpu_instance != instance)
            continue;
        memset(sample, 0, sizeof *sample);
        sample->magic = SAMPLE_MAGIC;
        sample->taken_ns = sim_monotonic_ns();
        sample->moved_ns = gpu->moved_at_monotonic_ns ? gpu->moved_at_monotonic_ns : sample->taken_ns;
        sample->of_instance = 1;
        sample->graphics_ns = mig->gpm_graphics_ns;
        sample->sm_ns = mig->gpm_sm_ns;
        sample->occupancy_ns = mig->gpm_occupancy_ns;
        sample->tensor_ns = mig->gpm_tensor_ns;
        sample->dram_ns = mig->gpm_dram_ns;
        return NVML_SUCCESS;
    }
    return NVML_ERROR_INVALID_ARGUMENT;
}

static double percent(uint64_t before, uint64_t after, double elapsed_ns) {
    double share = 100.0 * (double)(after - before) / elapsed_ns;
    return share > 100.0 ? 100.0 : share;
}

static nvmlReturn_t metric(const struct nvmlGpmSample_st *a, const struct nvmlGpmSample_st *b, unsigned int id,
                           double *value) {
    double ns = (double)(b->moved_ns - a->moved_ns), seconds = ns / 1e9;
    uint64_t kib = 0;
    if (b->of_instance && id != NVML_GPM_METRIC_GRAPHICS_UTIL && id != NVML_GPM_METRIC_SM_UTIL &&
        id != NVML_GPM_METRIC_SM_OCCUPANCY && id != NVML_GPM_METRIC_ANY_TENSOR_UTIL &&
        id != NVML_GPM_METRIC_DRAM_BW_UTIL)
        return NVML_ERROR_NOT_SUPPORTED;
    switch (id) {
    case NVML_GPM_METRIC_GRAPHICS_UTIL: *value = percent(a->graphics_ns, b->graphics_ns, ns); return NVML_SUCCESS;
    case NVML_GPM_METRIC_SM_UTIL: *value = percent(a->sm_ns, b->sm_ns, ns); return NVML_SUCCESS;
    case NVML_GPM_METRIC_SM_OCCUPANCY: *value = percent(a->occupancy_ns, b->occupancy_ns, ns); return NVML_SUCCESS;
    case NVML_GPM_METRIC_ANY_TENSOR_UTIL: *value = percent(a->tensor_ns, b->tensor_ns, ns); return NVML_SUCCESS;
    case NVML_GPM_METRIC_HMMA_TENSOR_UTIL: *value = percent(a->hmma_ns, b->hmma_ns, ns); return NVML_SUCCESS;
    case NVML_GPM_METRIC_DFMA_TENSOR_UTIL: *value = percent(a->dfma_ns, b->dfma_ns, ns); return NVML_SUCCESS;
    case NVML_GPM_METRIC_IMMA_TENSOR_UTIL: *value = percent(a->imma_ns, b->imma_ns, ns); return NVML_SUCCESS;
    case NVML_GPM_METRIC_DRAM_BW_UTIL: *value = percent(a->dram_ns, b->dram_ns, ns); return NVML_SUCCESS;
    case NVML_GPM_METRIC_INTEGER_UTIL: *value = percent(a->integer_ns, b->integer_ns, ns); return NVML_SUCCESS;
    case NVML_GPM_METRIC_FP64_UTIL: *value = percent(a->fp64_ns, b->fp64_ns, ns); return NVML_SUCCESS;
    case NVML_GPM_METRIC_FP32_UTIL: *value = percent(a->fp32_ns, b->fp32_ns, ns); return NVML_SUCCESS;
    case NVML_GPM_METRIC_FP16_UTIL: *value = percent(a->fp16_ns, b->fp16_ns, ns); return NVML_SUCCESS;
    case NVML_GPM_METRIC_DMMA_TENSOR_UTIL: *value = 0.0; return NVML_SUCCESS;
    case NVML_GPM_METRIC_PCIE_TX_PER_SEC:
        *value = (double)(b->pcie_tx_bytes - a->pcie_tx_bytes) / MIB / seconds;
        return NVML_SUCCESS;
    case NVML_GPM_METRIC_PCIE_RX_PER_SEC:
        *value = (double)(b->pcie_rx_bytes - a->pcie_rx_bytes) / MIB / seconds;
        return NVML_SUCCESS;
    case NVML_GPM_METRIC_NVLINK_TOTAL_RX_PER_SEC:
    case NVML_GPM_METRIC_NVLINK_TOTAL_TX_PER_SEC:
        for (unsigned int i = 0; i < b->links; i++)
            kib += id == NVML_GPM_METRIC_NVLINK_TOTAL_RX_PER_SEC ? b->link_rx_kib[i] - a->link_rx_kib[i]
                                                                 : b->link_tx_kib[i] - a->link_tx_kib[i];
        *value = (double)kib / 1024.0 / seconds;
        return NVML_SUCCESS;
    default: break;
    }
    if (id >= NVML_GPM_METRIC_NVLINK_L0_RX_PER_SEC && id < NVML_GPM_METRIC_NVLINK_L0_RX_PER_SEC + 2 * b->links) {
        unsigned int link = (id - NVML_GPM_METRIC_NVLINK_L0_RX_PER_SEC) / 2;
        kib = (id - NVML_GPM_METRIC_NVLINK_L0_RX_PER_SEC) % 2 == 0 ? b->link_rx_kib[link] - a->link_rx_kib[link]
                                                                   : b->link_tx_kib[link] - a->link_tx_kib[link];
        *value = (double)kib / 1024.0 / seconds;
        return NVML_SUCCESS;
    }
    return NVML_ERROR_NOT_SUPPORTED;
}

nvmlReturn_t nvmlGpmMetricsGet(nvmlGpmMetricsGet_t *get) {
    nvmlReturn_t ready = sim_initialised();
    if (ready != NVML_SUCCESS)
        return ready;
    CHECK(get);
    VERSIONED(get, NVML_GPM_METRICS_GET_VERSION);
    const struct nvmlGpmSample_st *a = get->sample1, *b = get->sample2;
    CHECK(a && b && a->magic == SAMPLE_MAGIC && b->magic == SAMPLE_MAGIC && get->numMetrics <= NVML_GPM_METRIC_MAX);
    /* The header states the floor and not the code for breaking it: unverified. */
    CHECK(a->taken_ns && b->taken_ns >= a->taken_ns + FLOOR_NS);
    if (b->moved_ns <= a->moved_ns)
        return NVML_ERROR_NO_DATA; /* the counters behind the integrals have not been refreshed since */
    for (unsigned int i = 0; i < get->numMetrics; i++) {
        nvmlGpmMetric_t *out = &get->metrics[i];
        out->value = 0.0;
        memset(&out->metricInfo, 0, sizeof out->metricInfo);
        out->nvmlReturn = metric(a, b, out->metricId, &out->value);
    }
    return NVML_SUCCESS;
}
