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

/* records.py: Phase, StepFlag, RecordKind, MISSING, and the layouts of StepRecord and GroupRecord. */
enum { NONE, DATA_WAIT, FORWARD, BACKWARD, COLLECTIVE_WAIT, OPTIMIZER, CHECKPOINT, EVALUATION, OTHER, ENDED, H2D, SYNC,
       BUBBLE, PHASES };
enum { WARM_UP = 1, SKIPPED = 2, EXPLICIT = 4 };
enum { STEP_KIND = 1, GROUP_KIND = 3 };
#define MISSING INT64_MIN
#define STEP_FIELDS 38
#define GROUP_NAME_BYTES 48
#define GROUP_MEMBERS_BYTES 80

typedef struct {
    int64_t before[6];
    char name[GROUP_NAME_BYTES];
    int64_t after[6];
    char members[GROUP_MEMBERS_BYTES];
} GroupFields;

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
    Py_buffer ring, counter;
    PyObject *clock;         /* NULL: CLOCK_MONOTONIC, read here */
    PyObject *timeline_mark, *timeline, *group_states, *groups, *on_step, *memory; /* NULL or None where there is none */
    long long slots, spent[PHASES], since_ns, start_ns, timed_ns, wait_in_backward_ns, boundaries_ns;
    long long read_ns, read_step, look_ns, modules, cpu_total_ns, waited_total_ns;
    long long step, phase, depth, flags, sync_count, issued, gc_ns, gc_count, compile_ns, recompiles;
    long long work, loader_ready, loader_workers, collate_ns, loader_cpu_ns, loader_io_ns;
    long long backward_count, microbatches, cpu_ns, runqueue_ns, hook_ns;
    long long allocated_bytes, reserved_bytes, peak_bytes, alloc_retries;
    long long last_step_ns, last_data_wait_ns;
    int schedstat;
    char sampled, copies_watched;
} Boundaries;

extern PyTypeObject BoundariesType, GroupStateType, HotLoopType, NextGateType, BackwardGateType, CollateGateType;

/* Whether a 64-bit result of -1 stands for an exception. */
static inline int failed(long long value)
{
    return value == -1 && PyErr_Occurred();
}

static inline int is_there(PyObject *object)
{
    return object != NULL && object != Py_None;
}

/* Now in ns, or -1 with an exception set. */
long long now_ns(Boundaries *self);
/* The thread passes into a phase; returns now, or -1 with an exception set. */
long long switch_phase(Boundaries *self, long long phase);
/* The step ends; -1 with an exception set where that failed. */
int end_step(Boundaries *self, long long next_phase);
/* Fill in a group's record of the step under way; 0 where the group was not used in it, -1 with an exception set. */
int fill_group(GroupState *state, GroupFields *fields, long long step, long long own_ns, long long more_count,
               long long more_wait_ns);
void fill_crc_table(void);

#endif
