/* Event sets: every waiter reads the shared stream of events from the place where it registered. */
#include "internal.h"

#include <pthread.h>
#include <stdlib.h>

#define POLL_NS 20000000u
#define MAX_SETS 64
#define ALL_EVENTS (nvmlEventTypeXidCriticalError | nvmlEventTypeSingleBitEccError | nvmlEventTypeDoubleBitEccError | \
                    nvmlEventTypePState | nvmlEventTypeClock)

struct nvmlEventSet_st {
    uint64_t cursor;
    uint64_t types[SIM_MAX_GPUS];
    uint64_t since[SIM_MAX_GPUS]; /* events before the registration are not reported */
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static nvmlEventSet_t sets[MAX_SETS];

static int known(nvmlEventSet_t set) {
    int found = 0;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < MAX_SETS && !found; i++)
        found = set != NULL && sets[i] == set;
    pthread_mutex_unlock(&lock);
    return found;
}

nvmlReturn_t nvmlEventSetCreate(nvmlEventSet_t *set) {
    nvmlReturn_t ready = sim_initialised();
    if (ready != NVML_SUCCESS)
        return ready;
    CHECK(set);
    nvmlEventSet_t fresh = calloc(1, sizeof *fresh);
    if (fresh == NULL)
        return NVML_ERROR_MEMORY;
    fresh->cursor = sim_state()->event_count;
    nvmlReturn_t result = NVML_ERROR_INSUFFICIENT_RESOURCES;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < MAX_SETS; i++)
        if (sets[i] == NULL) {
            *set = sets[i] = fresh;
            result = NVML_SUCCESS;
            break;
        }
    pthread_mutex_unlock(&lock);
    if (result != NVML_SUCCESS)
        free(fresh);
    return result;
}

nvmlReturn_t nvmlEventSetFree(nvmlEventSet_t set) {
    nvmlReturn_t ready = sim_initialised();
    if (ready != NVML_SUCCESS)
        return ready;
    nvmlReturn_t result = NVML_ERROR_INVALID_ARGUMENT;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < MAX_SETS; i++)
        if (set != NULL && sets[i] == set) {
            sets[i] = NULL;
            result = NVML_SUCCESS;
        }
    pthread_mutex_unlock(&lock);
    if (result == NVML_SUCCESS)
        free(set);
    return result;
}

nvmlReturn_t nvmlDeviceGetSupportedEventTypes(nvmlDevice_t device, unsigned long long *types) {
    ENTER(device, types);
    *types = gpu->not_supported & SIM_FEATURE_EVENTS ? 0 : ALL_EVENTS;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceRegisterEvents(nvmlDevice_t device, unsigned long long types, nvmlEventSet_t set) {
    ENTER(device, set);
    CHECK(known(set));
    NEEDS(EVENTS);
    if (types & ~(unsigned long long)ALL_EVENTS)
        return NVML_ERROR_NOT_SUPPORTED;
    size_t slot = (size_t)(gpu - sim_state()->gpus);
    if (set->types[slot] == 0)
        set->since[slot] = sim_state()->event_count;
    set->types[slot] |= types;
    return NVML_SUCCESS;
}

/* Takes the next event the set asked for; 0 if there is none yet. */
static int take(nvmlEventSet_t set, nvmlEventData_t *data) {
    const volatile sim_node *node = sim_state();
    uint64_t count = node->event_count;
    if (count - set->cursor > SIM_EVENT_SLOTS)
        set->cursor = count - SIM_EVENT_SLOTS; /* overwritten: a queue that long loses its oldest */
    while (set->cursor < count) {
        uint64_t place = set->cursor++;
        const volatile sim_event *event = &node->events[place % SIM_EVENT_SLOTS];
        uint64_t type = event->event_type, number = event->event_data;
        unsigned int slot = event->gpu;
        if (event->sequence != place + 1 || slot >= SIM_MAX_GPUS)
            continue;
        if (place < set->since[slot] || !(set->types[slot] & type))
            continue;
        data->device = sim_handle(slot);
        data->eventType = type;
        data->eventData = type == nvmlEventTypeXidCriticalError ? number : 0;
        data->gpuInstanceId = data->computeInstanceId = 0xffffffffu;
        return 1;
    }
    return 0;
}

static int any_lost(nvmlEventSet_t set) {
    for (unsigned int i = 0; i < sim_state()->gpu_count; i++)
        if (set->types[i] && sim_state()->gpus[i].lost)
            return 1;
    return 0;
}

nvmlReturn_t nvmlEventSetWait_v2(nvmlEventSet_t set, nvmlEventData_t *data, unsigned int timeout_ms) {
    nvmlReturn_t ready = sim_initialised();
    if (ready != NVML_SUCCESS)
        return ready;
    CHECK(data && known(set));
    uint64_t end = sim_monotonic_ns() + (uint64_t)timeout_ms * 1000000u;
    for (;;) {
        if (take(set, data))
            return NVML_SUCCESS;
        if (any_lost(set))
            return NVML_ERROR_GPU_IS_LOST;
        uint64_t now = sim_monotonic_ns();
        if (now >= end)
            return NVML_ERROR_TIMEOUT;
        sim_sleep_ns(end - now < POLL_NS ? end - now : POLL_NS);
    }
}
nvmlReturn_t nvmlEventSetWait(nvmlEventSet_t set, nvmlEventData_t *data, unsigned int timeout_ms) {
    return nvmlEventSetWait_v2(set, data, timeout_ms);
}
