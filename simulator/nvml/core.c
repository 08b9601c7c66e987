/* Initialisation, handles, and how a call waits, hangs and fails. */
#define _GNU_SOURCE
#include "internal.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define HANDLE_TAG (UINT64_C(0x5253) << 48)
#define HANG_POLL_NS 10000000u

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static const volatile sim_node *node;
static dev_t mapped_device;
static ino_t mapped_inode;
static unsigned int references;
static uint32_t generation; /* handles of an earlier nvmlInit are stale */
static unsigned int visible[SIM_MAX_GPUS];
static unsigned int visible_count;

const volatile sim_node *sim_state(void) { return node; }

uint64_t sim_monotonic_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

uint64_t sim_realtime_us(void) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (uint64_t)now.tv_sec * 1000000u + (uint64_t)now.tv_nsec / 1000u;
}

void sim_sleep_ns(uint64_t ns) {
    struct timespec wait = {(time_t)(ns / 1000000000u), (long)(ns % 1000000000u)};
    while (nanosleep(&wait, &wait) != 0 && errno == EINTR) {
    }
}

int sim_driver_at_least(unsigned int major, unsigned int minor) {
    return node->driver_major > major || (node->driver_major == major && node->driver_minor >= minor);
}

/* What each GPU was asked, for a benchmark that compares clients: counted only where a file for it is named. */
typedef struct {
    uint64_t calls, answered_monotonic_ns, longest_gap_ns;
} sim_calls;
static sim_calls *calls;

static void map_calls(void) {
    const char *path = getenv("RANKSCOPE_SIM_NVML_CALLS");
    if (path == NULL || calls != NULL)
        return;
    int file = open(path, O_RDWR | O_CLOEXEC);
    struct stat status;
    if (file < 0)
        return;
    if (fstat(file, &status) == 0 && (size_t)status.st_size == SIM_MAX_GPUS * sizeof(sim_calls)) {
        void *mapped = mmap(NULL, SIM_MAX_GPUS * sizeof(sim_calls), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
        if (mapped != MAP_FAILED)
            calls = mapped;
    }
    close(file);
}

/* An answered call; the gap is the time since the one before. */
static void count_call(int slot) {
    if (calls == NULL)
        return;
    sim_calls *gpu = &calls[slot];
    uint64_t now = sim_monotonic_ns();
    __atomic_fetch_add(&gpu->calls, 1, __ATOMIC_RELAXED);
    uint64_t before = __atomic_exchange_n(&gpu->answered_monotonic_ns, now, __ATOMIC_RELAXED);
    uint64_t longest = __atomic_load_n(&gpu->longest_gap_ns, __ATOMIC_RELAXED);
    while (before != 0 && now > before && now - before > longest &&
           !__atomic_compare_exchange_n(&gpu->longest_gap_ns, &longest, now - before, 0, __ATOMIC_RELAXED,
                                        __ATOMIC_RELAXED)) {
    }
}

/* Maps the state named by the environment. A map is never undone: a call of another thread may still be inside. */
static nvmlReturn_t map_state(void) {
    const char *path = getenv("RANKSCOPE_SIM_NVML_STATE");
    if (path == NULL)
        return NVML_ERROR_DRIVER_NOT_LOADED;
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0)
        return errno == EACCES ? NVML_ERROR_NO_PERMISSION : NVML_ERROR_DRIVER_NOT_LOADED;
    struct stat status;
    if (fstat(file, &status) != 0 || (size_t)status.st_size != sizeof(sim_node)) {
        close(file);
        return NVML_ERROR_LIB_RM_VERSION_MISMATCH;
    }
    if (node == NULL || status.st_dev != mapped_device || status.st_ino != mapped_inode) {
        void *mapped = mmap(NULL, sizeof(sim_node), PROT_READ, MAP_SHARED, file, 0);
        if (mapped == MAP_FAILED) {
            close(file);
            return NVML_ERROR_OPERATING_SYSTEM;
        }
        const sim_node *found = mapped;
        if (found->magic != SIM_MAGIC || found->version != SIM_VERSION || found->gpu_count > SIM_MAX_GPUS) {
            munmap(mapped, sizeof(sim_node));
            close(file);
            return NVML_ERROR_LIB_RM_VERSION_MISMATCH;
        }
        node = found;
        mapped_device = status.st_dev;
        mapped_inode = status.st_ino;
    }
    close(file);
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlInitWithFlags(unsigned int flags) {
    (void)flags;
    pthread_mutex_lock(&lock);
    nvmlReturn_t result = NVML_SUCCESS;
    if (references == 0) {
        result = map_state();
        if (result == NVML_SUCCESS) {
            map_calls();
            /* A GPU that left the bus before this initialisation is not enumerated. */
            visible_count = 0;
            for (unsigned int i = 0; i < node->gpu_count; i++)
                if (!node->gpus[i].lost)
                    visible[visible_count++] = i;
            generation = (generation + 1) & 0xffffffu;
        }
    }
    if (result == NVML_SUCCESS)
        references++;
    pthread_mutex_unlock(&lock);
    return result;
}

nvmlReturn_t nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
nvmlReturn_t nvmlInit(void) { return nvmlInitWithFlags(0); }

nvmlReturn_t nvmlShutdown(void) {
    pthread_mutex_lock(&lock);
    nvmlReturn_t result = references > 0 ? NVML_SUCCESS : NVML_ERROR_UNINITIALIZED;
    if (references > 0)
        references--;
    pthread_mutex_unlock(&lock);
    return result;
}

nvmlReturn_t sim_initialised(void) { return references > 0 ? NVML_SUCCESS : NVML_ERROR_UNINITIALIZED; }

nvmlDevice_t sim_handle(unsigned int gpu) {
    return (nvmlDevice_t)(uintptr_t)(HANDLE_TAG | (uint64_t)generation << 10 | (gpu + 1));
}

/* A MIG handle is its GPU's with one more than its place above the GPU's seven bits. */
nvmlDevice_t sim_mig_handle(nvmlDevice_t device, unsigned int place) {
    return (nvmlDevice_t)(uintptr_t)((uint64_t)(uintptr_t)device | (uint64_t)(place + 1) << 7);
}

static int gpu_of(nvmlDevice_t device, int *mig) {
    uint64_t bits = (uint64_t)(uintptr_t)device;
    unsigned int slot = bits & 0x7f;
    *mig = (int)(bits >> 7 & 7) - 1;
    if ((bits & ~UINT64_C(0x3ff)) != (HANDLE_TAG | (uint64_t)generation << 10))
        return -1;
    return slot >= 1 && slot <= node->gpu_count ? (int)slot - 1 : -1;
}

static void wait_out(sim_gpu_ref gpu) {
    for (;;) {
        uint64_t now = sim_monotonic_ns();
        if (now >= gpu->hang_until_monotonic_ns && now >= node->hang_until_monotonic_ns)
            break;
        sim_sleep_ns(HANG_POLL_NS); /* in steps, so that the scenario can end the hang early */
    }
    if (gpu->latency_us)
        sim_sleep_ns((uint64_t)gpu->latency_us * 1000u);
}

nvmlReturn_t sim_enter_any(nvmlDevice_t device, const void *argument, sim_gpu_ref *gpu, sim_mig_ref *mig) {
    if (references == 0)
        return NVML_ERROR_UNINITIALIZED;
    int place, slot = gpu_of(device, &place);
    if (slot < 0 || argument == NULL)
        return NVML_ERROR_INVALID_ARGUMENT;
    *gpu = &node->gpus[slot];
    *mig = place < 0 ? NULL : &node->gpus[slot].migs[place];
    wait_out(*gpu);
    count_call(slot);
    if ((*gpu)->lost)
        return NVML_ERROR_GPU_IS_LOST;
    if (*mig != NULL && !((*gpu)->mig_enabled && (*mig)->present))
        return NVML_ERROR_INVALID_ARGUMENT; /* the instance is gone, and its handle with it */
    return (nvmlReturn_t)(*gpu)->fail_with;
}

nvmlReturn_t sim_enter(nvmlDevice_t device, const void *argument, sim_gpu_ref *gpu) {
    sim_mig_ref mig = NULL;
    nvmlReturn_t entered = sim_enter_any(device, argument, gpu, &mig);
    /* What a call that is for whole GPUs answers to a MIG handle is unverified. */
    return entered == NVML_SUCCESS && mig != NULL ? NVML_ERROR_INVALID_ARGUMENT : entered;
}

/* What every function of the header answers that is not implemented here. */
nvmlReturn_t sim_unsupported(const char *name, nvmlDevice_t first_argument) {
    if (references == 0)
        return NVML_ERROR_UNINITIALIZED;
    if (strncmp(name, "nvmlDevice", 10) != 0)
        return NVML_ERROR_NOT_SUPPORTED;
    sim_gpu_ref gpu;
    nvmlReturn_t entered = sim_enter(first_argument, "", &gpu);
    if (entered != NVML_SUCCESS)
        return entered;
    /* What changes a device needs root, and the simulated caller never is. */
    int changes = strncmp(name, "nvmlDeviceSet", 13) == 0 || strncmp(name, "nvmlDeviceClear", 15) == 0 ||
                  strncmp(name, "nvmlDeviceReset", 15) == 0;
    return changes ? NVML_ERROR_NO_PERMISSION : NVML_ERROR_NOT_SUPPORTED;
}

nvmlReturn_t sim_copy(char *to, unsigned int length, const volatile char *from) {
    size_t needed = strlen((const char *)from) + 1;
    if (length < needed)
        return NVML_ERROR_INSUFFICIENT_SIZE;
    memcpy(to, (const char *)from, needed);
    return NVML_SUCCESS;
}

/* Handles. */

nvmlReturn_t nvmlDeviceGetCount_v2(unsigned int *count) {
    if (references == 0)
        return NVML_ERROR_UNINITIALIZED;
    CHECK(count);
    *count = visible_count;
    return NVML_SUCCESS;
}
nvmlReturn_t nvmlDeviceGetCount(unsigned int *count) { return nvmlDeviceGetCount_v2(count); }

static nvmlReturn_t give(unsigned int gpu, nvmlDevice_t *device) {
    if (node->gpus[gpu].lost)
        return NVML_ERROR_GPU_IS_LOST;
    *device = sim_handle(gpu);
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned int index, nvmlDevice_t *device) {
    if (references == 0)
        return NVML_ERROR_UNINITIALIZED;
    CHECK(device && index < visible_count);
    return give(visible[index], device);
}
nvmlReturn_t nvmlDeviceGetHandleByIndex(unsigned int index, nvmlDevice_t *device) {
    return nvmlDeviceGetHandleByIndex_v2(index, device);
}

nvmlReturn_t nvmlDeviceGetHandleByUUID(const char *uuid, nvmlDevice_t *device) {
    if (references == 0)
        return NVML_ERROR_UNINITIALIZED;
    CHECK(uuid && device);
    for (unsigned int i = 0; i < visible_count; i++)
        if (strcmp(uuid, (const char *)node->gpus[visible[i]].uuid) == 0)
            return give(visible[i], device);
    for (unsigned int i = 0; i < visible_count; i++)
        for (unsigned int place = 0; place < SIM_MAX_MIG; place++) {
            sim_gpu_ref gpu = &node->gpus[visible[i]];
            if (gpu->mig_enabled && gpu->migs[place].present &&
                strcmp(uuid, (const char *)gpu->migs[place].uuid) == 0) {
                nvmlReturn_t given = give(visible[i], device);
                if (given == NVML_SUCCESS)
                    *device = sim_mig_handle(*device, place);
                return given;
            }
        }
    return NVML_ERROR_NOT_FOUND;
}

nvmlReturn_t nvmlDeviceGetHandleByUUIDV(const nvmlUUID_t *uuid, nvmlDevice_t *device) {
    if (references == 0)
        return NVML_ERROR_UNINITIALIZED;
    CHECK(uuid && device);
    VERSIONED(uuid, nvmlUUID_v1);
    if (uuid->type != NVML_UUID_TYPE_ASCII)
        return NVML_ERROR_INVALID_ARGUMENT;
    return nvmlDeviceGetHandleByUUID(uuid->value.str, device);
}

nvmlReturn_t nvmlDeviceGetHandleBySerial(const char *serial, nvmlDevice_t *device) {
    if (references == 0)
        return NVML_ERROR_UNINITIALIZED;
    CHECK(serial && device);
    for (unsigned int i = 0; i < visible_count; i++)
        if (strcmp(serial, (const char *)node->gpus[visible[i]].serial) == 0)
            return give(visible[i], device);
    return NVML_ERROR_NOT_FOUND;
}

nvmlReturn_t nvmlDeviceGetHandleByPciBusId_v2(const char *id, nvmlDevice_t *device) {
    if (references == 0)
        return NVML_ERROR_UNINITIALIZED;
    CHECK(id && device);
    unsigned int domain, bus, slot;
    if (sscanf(id, "%x:%x:%x", &domain, &bus, &slot) != 3) {
        domain = 0;
        CHECK(sscanf(id, "%x:%x", &bus, &slot) == 2);
    }
    for (unsigned int i = 0; i < visible_count; i++) {
        sim_gpu_ref gpu = &node->gpus[visible[i]];
        if (gpu->pci_domain == domain && gpu->pci_bus == bus && gpu->pci_device == slot)
            return give(visible[i], device);
    }
    return NVML_ERROR_NOT_FOUND;
}
nvmlReturn_t nvmlDeviceGetHandleByPciBusId(const char *id, nvmlDevice_t *device) {
    return nvmlDeviceGetHandleByPciBusId_v2(id, device);
}

nvmlReturn_t nvmlDeviceGetIndex(nvmlDevice_t device, unsigned int *index) {
    ENTER(device, index);
    for (unsigned int i = 0; i < visible_count; i++)
        if (&node->gpus[visible[i]] == gpu) {
            *index = i;
            return NVML_SUCCESS;
        }
    return NVML_ERROR_UNKNOWN;
}

/* The system. */

nvmlReturn_t nvmlSystemGetDriverVersion(char *version, unsigned int length) {
    if (references == 0)
        return NVML_ERROR_UNINITIALIZED;
    CHECK(version);
    return sim_copy(version, length, node->driver_version);
}

nvmlReturn_t nvmlSystemGetNVMLVersion(char *version, unsigned int length) {
    if (references == 0)
        return NVML_ERROR_UNINITIALIZED;
    CHECK(version);
    return sim_copy(version, length, node->nvml_version);
}

nvmlReturn_t nvmlSystemGetCudaDriverVersion(int *version) {
    if (references == 0)
        return NVML_ERROR_UNINITIALIZED;
    CHECK(version);
    *version = node->cuda_version;
    return NVML_SUCCESS;
}
nvmlReturn_t nvmlSystemGetCudaDriverVersion_v2(int *version) { return nvmlSystemGetCudaDriverVersion(version); }

nvmlReturn_t nvmlSystemGetDriverBranch(nvmlSystemDriverBranchInfo_t *info, unsigned int length) {
    if (references == 0)
        return NVML_ERROR_UNINITIALIZED;
    CHECK(info);
    VERSIONED(info, nvmlSystemDriverBranchInfo_v1);
    char branch[16];
    snprintf(branch, sizeof branch, "r%u_00", node->driver_major / 5 * 5);
    return sim_copy(info->branch, length < sizeof info->branch ? length : sizeof info->branch, branch);
}

nvmlReturn_t nvmlSystemGetProcessName(unsigned int pid, char *name, unsigned int length) {
    if (references == 0)
        return NVML_ERROR_UNINITIALIZED;
    CHECK(name && length);
    char path[32];
    snprintf(path, sizeof path, "/proc/%u/cmdline", pid);
    FILE *file = fopen(path, "re");
    if (file == NULL)
        return NVML_ERROR_NOT_FOUND;
    size_t read = fread(name, 1, length - 1, file);
    fclose(file);
    name[read] = '\0'; /* the first argument ends at its own zero */
    return NVML_SUCCESS;
}

const char *nvmlErrorString(nvmlReturn_t result) {
    static const struct {
        nvmlReturn_t code;
        const char *text;
    } words[] = {
        {NVML_SUCCESS, "Success"},
        {NVML_ERROR_UNINITIALIZED, "Uninitialized"},
        {NVML_ERROR_INVALID_ARGUMENT, "Invalid Argument"},
        {NVML_ERROR_NOT_SUPPORTED, "Not Supported"},
        {NVML_ERROR_NO_PERMISSION, "Insufficient Permissions"},
        {NVML_ERROR_NOT_FOUND, "Not Found"},
        {NVML_ERROR_INSUFFICIENT_SIZE, "Insufficient Size"},
        {NVML_ERROR_DRIVER_NOT_LOADED, "Driver Not Loaded"},
        {NVML_ERROR_TIMEOUT, "Timeout"},
        {NVML_ERROR_FUNCTION_NOT_FOUND, "Function Not Found"},
        {NVML_ERROR_GPU_IS_LOST, "GPU is lost"},
        {NVML_ERROR_RESET_REQUIRED, "GPU requires reset"},
        {NVML_ERROR_OPERATING_SYSTEM, "The operating system has blocked the request"},
        {NVML_ERROR_LIB_RM_VERSION_MISMATCH, "Driver/library version mismatch"},
        {NVML_ERROR_MEMORY, "Insufficient memory"},
        {NVML_ERROR_NO_DATA, "No data"},
        {NVML_ERROR_ARGUMENT_VERSION_MISMATCH, "Argument version mismatch"},
    };
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (words[i].code == result)
            return words[i].text;
    return "Unknown Error";
}
