/* The hot path in C. Each file says which Python module is its reference; tests hold the two to each other.

   Every function runs with the interpreter's lock held, so the fields need none of their own. */

#ifndef RANKSCOPE_NATIVE_H
#define RANKSCOPE_NATIVE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <structmember.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the ring is little-endian: on this machine boundaries.py writes it"
#endif

/* records.py: Phase, StepFlag, RecordKind, GroupKind, MISSING, and the layouts of the records written here. */
enum { NONE, DATA_WAIT, FORWARD, BACKWARD, COLLECTIVE_WAIT, OPTIMIZER, CHECKPOINT, EVALUATION, OTHER, ENDED, H2D, SYNC,
       BUBBLE, PHASES };
enum { WARM_UP = 1, SKIPPED = 2, EXPLICIT = 4 };
enum { STEP_KIND = 1, DEVICE_KIND = 2, GROUP_KIND = 3 };
enum { SHARD = 2, PIPELINE = 4 };
#define MISSING INT64_MIN
#define STEP_FIELDS 38
#define DEVICE_FIELDS 20
#define GROUP_NAME_BYTES 48
#define GROUP_MEMBERS_BYTES 80

/* ring.py */
#define HEADER_BYTES 4096
#define STATUS_OFFSET 2048
#define SLOT_BYTES 384
/* Kind and length (2 bytes each) and sequence number (8): the checksum covers them and the fields. */
#define PREFIX_BYTES 12

typedef struct {
    int64_t before[6];
    char name[GROUP_NAME_BYTES];
    int64_t after[6];
    char members[GROUP_MEMBERS_BYTES];
} GroupFields;

/* ring.py: the file of a RingWriter, and the number of its next record, which both write. */
typedef struct {
    Py_buffer mapped, counter;
    long long slots;
} Ring;

/* group_state.py */
typedef struct {
    PyObject_HEAD
    PyObject *name, *members; /* bytes */
    PyObject *sequence_of;    /* NULL where torch is not asked */
    long long kind, size, count, wait_ns, sequence;
} GroupState;

/* boundaries.py */
typedef struct {
    PyObject_HEAD
    Ring ring;
    PyObject *clock;         /* NULL: CLOCK_MONOTONIC, read here */
    PyObject *timeline, *group_states, *on_step, *memory; /* NULL or None where there is none */
    long long spent[PHASES], since_ns, start_ns, timed_ns, wait_in_backward_ns, boundaries_ns;
    long long read_ns, read_step, look_ns, modules, cpu_total_ns, waited_total_ns;
    long long step, phase, depth, flags, sync_count, issued, gc_ns, gc_count, compile_ns, recompiles;
    long long work, loader_ready, loader_workers, collate_ns, loader_cpu_ns, loader_io_ns;
    long long backward_count, microbatches, cpu_ns, runqueue_ns, hook_ns;
    long long allocated_bytes, reserved_bytes, peak_bytes, alloc_retries;
    long long last_step_ns, last_data_wait_ns;
    int schedstat;
    char sampled, copies_watched;
} Boundaries;

extern PyTypeObject BoundariesType, DeviceTimelineType, GroupStateType, HotLoopType, HotCollectivesType, ListenerType,
    NextGateType, BackwardGateType, CollateGateType, OperationGateType, WaitGateType;

/* hot_collectives.py: an operation as it is issued, its arguments as they lie there, the process group first. */
typedef struct {
    PyObject *name, *const *arguments;
    Py_ssize_t count;
    int shards, to_peer;
} Operation;

/* A wait under way. */
typedef struct {
    PyObject *known; /* of the work: its group, or a tuple; NULL where nothing is */
    long long began, phase;
    int heard;
} Wait;

/* A name that is looked up often, and where its string is kept. */
typedef struct {
    PyObject **at;
    const char *text;
} Name;

/* Make the strings that are not there yet; -1 with an exception set. */
int intern_all(const Name *names, size_t count);

/* Where `result` is negative: pass the exception to `give_up`, but for what is no Exception (a keyboard interrupt), which
   goes on as in Python. 0, or -1 with an exception set. */
int settle(int result, PyObject *give_up);

/* Whether a 64-bit result of -1 stands for an exception. */
static inline int failed(long long value)
{
    return value == -1 && PyErr_Occurred();
}

static inline int is_there(PyObject *object)
{
    return object != NULL && object != Py_None;
}

static inline int quiet_call(PyObject *answer)
{
    Py_XDECREF(answer);
    return answer == NULL ? -1 : 0;
}

/* Of a RingWriter; -1 with an exception set. */
int ring_open(Ring *ring, PyObject *writer);
void ring_close(Ring *ring);
/* A record of `size` bytes of fields becomes the next one. */
void ring_append(Ring *ring, uint16_t kind, const void *fields, uint16_t size);
/* Now in ns, or -1 with an exception set. */
long long now_ns(Boundaries *self);
/* The thread passes into a phase; returns now, or -1 with an exception set. */
long long switch_phase(Boundaries *self, long long phase);
/* The step ends; -1 with an exception set where that failed. */
int end_step(Boundaries *self, long long next_phase);
/* The thread waits inside the phase under way: returns now, then the ns waited, or -1 with an exception set. */
long long wait_begins(Boundaries *self, long long phase);
long long wait_ends(Boundaries *self, long long began, long long phase);
/* The device timeline's part of a boundary and of a step's end; -1 with an exception set. */
int timeline_mark(PyObject *timeline, long long ended, long long begun, long long host_ns, PyObject *group);
int timeline_end_step(PyObject *timeline, long long step, PyObject *states);
int timeline_wait_begins(PyObject *timeline, long long phase, long long host_ns);
int timeline_wait_ends(PyObject *timeline, PyObject *group, long long host_ns);
/* What gates tell a HotCollectives; -1 with an exception set. `wait` is filled, and emptied again. */
int collectives_issued(PyObject *collectives, const Operation *operation, PyObject *work);
int collectives_begin_wait(PyObject *collectives, PyObject *work, Wait *wait);
int collectives_end_wait(PyObject *collectives, Wait *wait);
/* Sequence numbers of a group's operations since this was last asked, or MISSING; -1 with an exception set. */
int group_since_asked(GroupState *state, long long *first, long long *last);
/* Write a group's record. */
void group_append(Ring *ring, const GroupState *state, long long step, long long count, long long own_ns,
                  long long wait_ns, int on_device, int unseen, long long first, long long last);
/* The states of a list of groups, or NULL with an exception set where it is none. */
GroupState *group_at(PyObject *states, Py_ssize_t at);
/* CRC-32 as zlib's. Before the first: `may_multiply` where the processor's own instructions may be used. */
void prepare_crc(int may_multiply);
uint32_t crc32_of(const unsigned char *bytes, size_t size);

#endif
