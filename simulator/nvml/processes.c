/* Processes with a context on a GPU. */
#include "internal.h"

#include <string.h>

/* nvmlProcessMode_t, which earlier headers state in words only. */
enum { MODE_COMPUTE = 0, MODE_ALL = 3, MODE_COUNT = 4 };

#define NO_INSTANCE 0xffffffffu /* nvml.h: what the instance ids hold without MIG */

/* The processes of a GPU, or of one of its MIG instances. */
static unsigned int snapshot(sim_gpu_ref gpu, sim_mig_ref mig, sim_process found[SIM_MAX_PROCESSES]) {
    unsigned int count = 0;
    for (unsigned int i = 0; i < SIM_MAX_PROCESSES; i++) {
        uint32_t pid = gpu->processes[i].pid;
        uint32_t instance = gpu->processes[i].mig;
        if (pid != 0 && (mig == NULL || (instance && &gpu->migs[instance - 1] == mig))) {
            found[count].pid = pid;
            found[count].mig = instance;
            found[count].sm_utilization = gpu->processes[i].sm_utilization;
            found[count].used_bytes = gpu->processes[i].used_bytes;
            count++;
        }
    }
    return count;
}

static nvmlReturn_t room_for(unsigned int there, unsigned int *count, const void *infos) {
    unsigned int room = *count;
    if (room > 0 && infos == NULL)
        return NVML_ERROR_INVALID_ARGUMENT;
    *count = there;
    return room < there ? NVML_ERROR_INSUFFICIENT_SIZE : NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v3(nvmlDevice_t device, unsigned int *count,
                                                     nvmlProcessInfo_t *infos) {
    ENTER_ANY(device, count);
    if (gpu->mig_enabled && mig == NULL)
        return NVML_ERROR_NO_PERMISSION; /* nvml.h: the aggregate only "if the caller has appropriate privileges" */
    sim_process found[SIM_MAX_PROCESSES];
    unsigned int there = snapshot(gpu, mig, found);
    nvmlReturn_t room = room_for(there, count, infos);
    for (unsigned int i = 0; room == NVML_SUCCESS && i < there; i++) {
        infos[i].pid = found[i].pid;
        infos[i].usedGpuMemory = found[i].used_bytes;
        infos[i].gpuInstanceId = found[i].mig ? gpu->migs[found[i].mig - 1].gpu_instance : NO_INSTANCE;
        infos[i].computeInstanceId = found[i].mig ? gpu->migs[found[i].mig - 1].compute_instance : NO_INSTANCE;
    }
    return room;
}
nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v2(nvmlDevice_t device, unsigned int *count,
                                                     nvmlProcessInfo_v2_t *infos) {
    return nvmlDeviceGetComputeRunningProcesses_v3(device, count, infos);
}
nvmlReturn_t nvmlDeviceGetComputeRunningProcesses(nvmlDevice_t device, unsigned int *count,
                                                  nvmlProcessInfo_v1_t *infos) {
    ENTER(device, count);
    sim_process found[SIM_MAX_PROCESSES];
    unsigned int there = snapshot(gpu, NULL, found);
    nvmlReturn_t room = room_for(there, count, infos);
    for (unsigned int i = 0; room == NVML_SUCCESS && i < there; i++) {
        infos[i].pid = found[i].pid;
        infos[i].usedGpuMemory = found[i].used_bytes;
    }
    return room;
}

/* No graphics and no MPS clients on a training node. */
static nvmlReturn_t nobody(nvmlDevice_t device, unsigned int *count) {
    ENTER(device, count);
    *count = 0;
    return NVML_SUCCESS;
}
#define NOBODY(function, type)                                                            \
    nvmlReturn_t function(nvmlDevice_t device, unsigned int *count, type *infos) {        \
        (void)infos;                                                                      \
        return nobody(device, count);                                                     \
    }
NOBODY(nvmlDeviceGetGraphicsRunningProcesses_v3, nvmlProcessInfo_t)
NOBODY(nvmlDeviceGetGraphicsRunningProcesses_v2, nvmlProcessInfo_v2_t)
NOBODY(nvmlDeviceGetGraphicsRunningProcesses, nvmlProcessInfo_v1_t)
NOBODY(nvmlDeviceGetMPSComputeRunningProcesses_v3, nvmlProcessInfo_t)
NOBODY(nvmlDeviceGetMPSComputeRunningProcesses_v2, nvmlProcessInfo_v2_t)
NOBODY(nvmlDeviceGetMPSComputeRunningProcesses, nvmlProcessInfo_v1_t)

nvmlReturn_t nvmlDeviceGetRunningProcessDetailList(nvmlDevice_t device, nvmlProcessDetailList_t *list) {
    ENTER(device, list);
    VERSIONED(list, nvmlProcessDetailList_v1);
    CHECK(list->mode < MODE_COUNT);
    sim_process found[SIM_MAX_PROCESSES];
    int compute = list->mode == MODE_COMPUTE || list->mode == MODE_ALL;
    unsigned int there = compute ? snapshot(gpu, NULL, found) : 0;
    nvmlReturn_t room = room_for(there, &list->numProcArrayEntries, list->procArray);
    for (unsigned int i = 0; room == NVML_SUCCESS && i < there; i++) {
        memset(&list->procArray[i], 0, sizeof list->procArray[i]);
        list->procArray[i].pid = found[i].pid;
        list->procArray[i].usedGpuMemory = found[i].used_bytes;
        list->procArray[i].gpuInstanceId = list->procArray[i].computeInstanceId = NO_INSTANCE;
    }
    return room;
}

nvmlReturn_t nvmlDeviceGetProcessUtilization(nvmlDevice_t device, nvmlProcessUtilizationSample_t *samples,
                                             unsigned int *count, unsigned long long last_seen) {
    (void)last_seen; /* the one sample there is is always new */
    ENTER(device, count);
    NEEDS(UTILIZATION);
    NOT_UNDER_MIG(); /* nvml.h: "On MIG-enabled GPUs, querying process utilization is not currently supported." */
    sim_process found[SIM_MAX_PROCESSES];
    unsigned int there = gpu->utilization_percent ? snapshot(gpu, NULL, found) : 0;
    if (there == 0)
        return NVML_ERROR_NOT_FOUND;
    unsigned int room = *count;
    *count = there;
    if (samples == NULL || room < there)
        return NVML_ERROR_INSUFFICIENT_SIZE;
    memset(samples, 0, there * sizeof *samples);
    for (unsigned int i = 0; i < there; i++) {
        samples[i].pid = found[i].pid;
        samples[i].timeStamp = sim_realtime_us();
        samples[i].smUtil = gpu->utilization_percent / there;
        samples[i].memUtil = gpu->memory_utilization_percent / there;
    }
    return NVML_SUCCESS;
}
