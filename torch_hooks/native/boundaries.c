/* The boundaries of a step: what boundaries.py does, byte for byte. */

#include "native.h"
#include <string.h>
#include <time.h>
#include <unistd.h>

#define READ_PERIOD_NS 25000000LL
#define LOOK_PERIOD_NS 200000000LL
#define WARM_UP_STEPS 3
#define HOOK_SAMPLE 16

long long now_ns(Boundaries *self)
{
    if (self->clock != NULL) {
        PyObject *value = PyObject_CallNoArgs(self->clock);
        long long now = value == NULL ? -1 : PyLong_AsLongLong(value);
        Py_XDECREF(value);
        return now;
    }
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static int has_ring(Boundaries *self)
{
    if (self->ring.mapped.buf != NULL)
        return 1;
    PyErr_SetString(PyExc_ValueError, "no ring: __init__ was not called");
    return 0;
}

static int is_phase(long long phase)
{
    if (phase >= 0 && phase < PHASES)
        return 1;
    PyErr_Format(PyExc_IndexError, "no phase %lld", phase);
    return 0;
}

/* Three words, of which the last checks the others: a reader that finds them torn reads again. */
static void set_status(Boundaries *self, long long now, long long phase)
{
    uint64_t *status = (uint64_t *)((char *)self->ring.mapped.buf + STATUS_OFFSET);
    uint64_t doing = (uint64_t)self->step << 16 | (uint64_t)self->depth << 8 | (uint64_t)phase;
    __atomic_store_n(status, (uint64_t)now, __ATOMIC_RELAXED);
    __atomic_store_n(status + 1, doing, __ATOMIC_RELAXED);
    __atomic_store_n(status + 2, (uint64_t)now ^ doing, __ATOMIC_RELEASE);
}

static int is_carved(long long phase)
{
    return phase == NONE || phase == H2D || phase == FORWARD || phase == BACKWARD || phase == OPTIMIZER ||
           phase == OTHER || phase == DATA_WAIT;
}

long long switch_phase(Boundaries *self, long long phase)
{
    long long ended = self->phase;
    if (!is_phase(phase) || !is_phase(ended) || !has_ring(self))
        return -1;
    long long now = now_ns(self);
    if (failed(now))
        return -1;
    self->spent[ended] += now - self->since_ns;
    self->since_ns = now;
    self->phase = phase;
    set_status(self, now, phase);
    if (is_there(self->timeline) && timeline_mark(self->timeline, ended, phase, now, Py_None) < 0)
        return -1;
    if (self->sampled) {
        long long after = now_ns(self);
        if (failed(after))
            return -1;
        self->timed_ns += after - now;
    }
    return now;
}

static PyObject *boundaries_switch(Boundaries *self, PyObject *argument)
{
    long long phase = PyLong_AsLongLong(argument);
    if (failed(phase))
        return NULL;
    long long now = switch_phase(self, phase);
    return failed(now) ? NULL : PyLong_FromLongLong(now);
}

static PyObject *boundaries_synchronized(Boundaries *self, PyObject *argument)
{
    long long blocked = PyLong_AsLongLong(argument);
    if (failed(blocked))
        return NULL;
    self->sync_count++;
    if (is_carved(self->phase)) {
        self->spent[SYNC] += blocked;
        self->since_ns += blocked;
    }
    Py_RETURN_NONE;
}

long long wait_begins(Boundaries *self, long long phase)
{
    if (!is_phase(phase) || !has_ring(self))
        return -1;
    long long now = now_ns(self);
    if (!failed(now))
        set_status(self, now, phase);
    return now;
}

static PyObject *boundaries_wait_begins(Boundaries *self, PyObject *argument)
{
    long long phase = PyLong_AsLongLong(argument);
    if (failed(phase))
        return NULL;
    long long now = wait_begins(self, phase);
    return failed(now) ? NULL : PyLong_FromLongLong(now);
}

long long wait_ends(Boundaries *self, long long began, long long phase)
{
    if (!is_phase(phase) || !has_ring(self))
        return -1;
    long long now = now_ns(self);
    if (failed(now))
        return -1;
    long long waited = now - began;
    set_status(self, now, self->phase);
    if (is_carved(self->phase)) {
        self->spent[phase] += waited;
        self->since_ns += waited;
        if (phase == COLLECTIVE_WAIT && self->phase != BACKWARD)
            self->wait_in_backward_ns -= waited;
    }
    return waited;
}

static PyObject *boundaries_wait_ends(Boundaries *self, PyObject *const *arguments, Py_ssize_t count)
{
    if (count != 2) {
        PyErr_SetString(PyExc_TypeError, "wait_ends(began_ns, phase)");
        return NULL;
    }
    long long began = PyLong_AsLongLong(arguments[0]);
    if (failed(began))
        return NULL;
    long long phase = PyLong_AsLongLong(arguments[1]);
    if (failed(phase))
        return NULL;
    long long waited = wait_ends(self, began, phase);
    return failed(waited) ? NULL : PyLong_FromLongLong(waited);
}

static void write_step(Boundaries *self, long long end_ns, long long flags)
{
    const long long *spent = self->spent;
    long long own = spent[BACKWARD], wait = spent[COLLECTIVE_WAIT], collate = self->collate_ns;
    /* The order is StepRecord's. */
    const int64_t fields[STEP_FIELDS] = {
        self->step, self->start_ns, end_ns, spent[DATA_WAIT], spent[FORWARD] + spent[H2D],
        own + wait + self->wait_in_backward_ns, spent[OPTIMIZER], spent[CHECKPOINT], spent[EVALUATION],
        spent[NONE] + spent[OTHER], own, spent[SYNC], self->sync_count, self->gc_ns, self->gc_count, self->compile_ns,
        self->cpu_ns, self->runqueue_ns, self->allocated_bytes, self->reserved_bytes, self->peak_bytes,
        self->alloc_retries, self->work, self->loader_ready, self->loader_workers, self->hook_ns, self->backward_count,
        self->copies_watched ? spent[H2D] : MISSING, wait, spent[BUBBLE],
        collate < 0 ? collate : spent[DATA_WAIT] - collate, collate, self->loader_cpu_ns, self->loader_io_ns,
        self->recompiles, flags, self->microbatches, is_there(self->group_states) ? self->issued : MISSING,
    };
    ring_append(&self->ring, STEP_KIND, fields, sizeof fields);
}

static int write_groups(Boundaries *self)
{
    PyObject *states = Py_NewRef(self->group_states);
    int on_device = is_there(self->timeline), result = 0;
    long long own = self->spent[FORWARD] + self->spent[BACKWARD];
    for (Py_ssize_t at = 0; result == 0 && (at == 0 || at < PyList_GET_SIZE(states)); at++) {
        GroupState *state = group_at(states, at);
        if (state == NULL) {
            result = -1;
            break;
        }
        /* In the whole job's group DDP reduces gradients out of our sight. */
        long long count = state->count + (at == 0 ? self->backward_count : 0), first = MISSING, last = MISSING;
        long long waited = state->wait_ns + (at == 0 ? self->spent[COLLECTIVE_WAIT] + self->wait_in_backward_ns : 0);
        if (count != 0) {
            /* Torch is asked seldom: of what came since it was last asked. */
            result = self->sampled ? group_since_asked(state, &first, &last) : 0;
            /* Operations whose waits were not seen were waited for somewhere in the "own" phases. */
            int unseen = state->count > 0 && state->wait_ns == 0;
            if (result == 0 && !on_device)
                group_append(&self->ring, state, self->step, count, own, waited, 0, unseen, first, last);
            state->count = state->wait_ns = 0;
        }
        Py_DECREF(state);
    }
    Py_DECREF(states);
    return result;
}

static void next_step(Boundaries *self, long long now)
{
    self->last_step_ns = now - self->start_ns;
    self->last_data_wait_ns = self->spent[DATA_WAIT];
    memset(self->spent, 0, sizeof self->spent);
    self->start_ns = now;
    if (self->collate_ns > 0)
        self->collate_ns = 0;
    self->backward_count = self->microbatches = self->sync_count = self->wait_in_backward_ns = self->flags = 0;
    self->issued = self->gc_ns = self->gc_count = 0;
    self->copies_watched = 0;
    self->step++;
}

/* Second number of the thread's schedstat, or -1. */
static long long read_schedstat(int descriptor)
{
    char text[97];
    ssize_t size = pread(descriptor, text, sizeof text - 1, 0);
    if (size <= 0)
        return -1;
    text[size] = 0;
    char *second = strchr(text, ' '), *end;
    if (second == NULL)
        return -1;
    long long waited = strtoll(second, &end, 10);
    return end == second || waited < 0 ? -1 : waited;
}

static void read_usage(Boundaries *self)
{
    long long steps = self->step + 1 - self->read_step;
    if (steps < 1)
        steps = 1;
    self->read_step = self->step + 1;
    struct timespec spent;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &spent);
    long long total = spent.tv_sec * 1000000000LL + spent.tv_nsec;
    self->cpu_ns = (total - self->cpu_total_ns) / steps;
    self->cpu_total_ns = total;
    if (self->schedstat < 0)
        return;
    long long waited = read_schedstat(self->schedstat);
    if (waited < 0) {
        self->schedstat = -1;
        self->runqueue_ns = MISSING;
        return;
    }
    self->runqueue_ns = waited > self->waited_total_ns ? (waited - self->waited_total_ns) / steps : 0;
    self->waited_total_ns = waited;
}

/* Read what costs a system call, or more. */
static int read_what_costs(Boundaries *self, long long now)
{
    read_usage(self);
    if (is_there(self->memory)) {
        PyObject *memory = PyObject_CallNoArgs(self->memory);
        if (memory == NULL)
            return -1;
        int read = memory == Py_None || PyArg_ParseTuple(memory, "LLLL", &self->allocated_bytes, &self->reserved_bytes,
                                                         &self->peak_bytes, &self->alloc_retries);
        Py_DECREF(memory);
        if (!read)
            return -1;
    }
    self->read_ns = now;
    Py_ssize_t modules = PyDict_Size(PyImport_GetModuleDict());
    if (modules == self->modules && now - self->look_ns <= LOOK_PERIOD_NS)
        return 0;
    self->modules = modules;
    self->look_ns = now;
    return quiet_call(PyObject_CallMethod((PyObject *)self, "look", NULL));
}

int end_step(Boundaries *self, long long next_phase)
{
    long long now = switch_phase(self, next_phase);
    if (failed(now))
        return -1;
    if (self->start_ns == now)
        return 0;
    if (now - self->read_ns > READ_PERIOD_NS && read_what_costs(self, now) < 0)
        return -1;
    long long step = self->step;
    int compiled = self->compile_ns > 0;
    if (compiled && quiet_call(PyObject_CallMethod((PyObject *)self, "explain", NULL)) < 0)
        return -1;
    write_step(self, now, self->flags | (step < WARM_UP_STEPS || compiled ? WARM_UP : 0));
    PyObject *states = self->group_states == NULL ? Py_None : self->group_states;
    if (is_there(self->timeline) && timeline_end_step(self->timeline, step, states) < 0)
        return -1;
    if (is_there(self->group_states) && write_groups(self) < 0)
        return -1;
    next_step(self, now);
    if (self->compile_ns > 0)
        self->compile_ns = self->recompiles = 0;
    int sampled = self->sampled, told = is_there(self->on_step);
    if (sampled) {
        self->boundaries_ns = self->timed_ns;
        self->timed_ns = 0;
    }
    if (told && quiet_call(PyObject_CallNoArgs(self->on_step)) < 0)
        return -1;
    if (sampled || told) {
        long long after = now_ns(self);
        if (failed(after))
            return -1;
        self->hook_ns = self->boundaries_ns + after - now;
    }
    self->sampled = self->step % HOOK_SAMPLE == 1;
    return 0;
}

static PyObject *boundaries_end_step(Boundaries *self, PyObject *argument)
{
    long long phase = PyLong_AsLongLong(argument);
    if (failed(phase) || end_step(self, phase) < 0)
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *boundaries_read_usage(Boundaries *self, PyObject *Py_UNUSED(ignored))
{
    read_usage(self);
    Py_RETURN_NONE;
}

static PyObject *boundaries_nothing(Boundaries *Py_UNUSED(self), PyObject *Py_UNUSED(ignored))
{
    Py_RETURN_NONE;
}

static PyObject *boundaries_spent_ns(Boundaries *self, PyObject *argument)
{
    long long phase = PyLong_AsLongLong(argument);
    if (failed(phase) || !is_phase(phase))
        return NULL;
    return PyLong_FromLongLong(self->spent[phase]);
}

static PyObject *boundaries_end_wait_ns(Boundaries *self, PyObject *Py_UNUSED(ignored))
{
    return PyLong_FromLongLong(self->spent[COLLECTIVE_WAIT] + self->wait_in_backward_ns);
}

static int boundaries_init(Boundaries *self, PyObject *arguments, PyObject *keywords)
{
    static char *names[] = {"ring", "monotonic_ns", NULL};
    PyObject *ring, *clock = Py_None;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O|O", names, &ring, &clock))
        return -1;
    if (self->ring.mapped.obj != NULL) {
        PyErr_SetString(PyExc_ValueError, "made once");
        return -1;
    }
    if (ring_open(&self->ring, ring) < 0)
        return -1;
    self->clock = clock == Py_None ? NULL : Py_NewRef(clock);
    self->schedstat = -1;
    self->work = self->loader_ready = self->loader_workers = MISSING;
    self->collate_ns = self->loader_cpu_ns = self->loader_io_ns = MISSING;
    self->cpu_ns = self->runqueue_ns = self->hook_ns = MISSING;
    self->allocated_bytes = self->reserved_bytes = self->peak_bytes = self->alloc_retries = MISSING;
    self->sampled = 1;
    self->since_ns = self->start_ns = now_ns(self);
    return failed(self->since_ns) ? -1 : 0;
}

static int boundaries_traverse(Boundaries *self, visitproc visit, void *arg)
{
    Py_VISIT(self->ring.mapped.obj);
    Py_VISIT(self->ring.counter.obj);
    Py_VISIT(self->clock);
    Py_VISIT(self->timeline);
    Py_VISIT(self->group_states);
    Py_VISIT(self->on_step);
    Py_VISIT(self->memory);
    return 0;
}

static int boundaries_clear(Boundaries *self)
{
    Py_CLEAR(self->clock);
    Py_CLEAR(self->timeline);
    Py_CLEAR(self->group_states);
    Py_CLEAR(self->on_step);
    Py_CLEAR(self->memory);
    return 0;
}

static void boundaries_dealloc(Boundaries *self)
{
    PyObject_GC_UnTrack(self);
    boundaries_clear(self);
    ring_close(&self->ring);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

#define NUMBER(name) {#name, T_LONGLONG, offsetof(Boundaries, name), 0, NULL}
#define OBJECT(name) {#name, T_OBJECT, offsetof(Boundaries, name), 0, NULL}
static PyMemberDef members[] = {
    NUMBER(step),
    NUMBER(phase),
    NUMBER(depth),
    NUMBER(flags),
    NUMBER(sync_count),
    NUMBER(issued),
    NUMBER(gc_ns),
    NUMBER(gc_count),
    NUMBER(compile_ns),
    NUMBER(recompiles),
    NUMBER(work),
    NUMBER(loader_ready),
    NUMBER(loader_workers),
    NUMBER(collate_ns),
    NUMBER(loader_cpu_ns),
    NUMBER(loader_io_ns),
    NUMBER(backward_count),
    NUMBER(microbatches),
    NUMBER(cpu_ns),
    NUMBER(runqueue_ns),
    NUMBER(hook_ns),
    NUMBER(allocated_bytes),
    NUMBER(reserved_bytes),
    NUMBER(peak_bytes),
    NUMBER(alloc_retries),
    NUMBER(timed_ns),
    NUMBER(start_ns),
    NUMBER(last_step_ns),
    NUMBER(last_data_wait_ns),
    {"sampled", T_BOOL, offsetof(Boundaries, sampled), 0, NULL},
    {"copies_watched", T_BOOL, offsetof(Boundaries, copies_watched), 0, NULL},
    {"schedstat", T_INT, offsetof(Boundaries, schedstat), 0, NULL},
    OBJECT(timeline),
    OBJECT(group_states),
    OBJECT(on_step),
    OBJECT(memory),
    {NULL, 0, 0, 0, NULL},
};

static PyMethodDef methods[] = {
    {"switch", (PyCFunction)boundaries_switch, METH_O, NULL},
    {"synchronized", (PyCFunction)boundaries_synchronized, METH_O, NULL},
    {"wait_begins", (PyCFunction)boundaries_wait_begins, METH_O, NULL},
    {"wait_ends", (PyCFunction)(void (*)(void))boundaries_wait_ends, METH_FASTCALL, NULL},
    {"spent_ns", (PyCFunction)boundaries_spent_ns, METH_O, NULL},
    {"end_wait_ns", (PyCFunction)boundaries_end_wait_ns, METH_NOARGS, NULL},
    {"end_step", (PyCFunction)boundaries_end_step, METH_O, NULL},
    {"read_usage", (PyCFunction)boundaries_read_usage, METH_NOARGS, NULL},
    {"explain", (PyCFunction)boundaries_nothing, METH_NOARGS, NULL},
    {"look", (PyCFunction)boundaries_nothing, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

PyTypeObject BoundariesType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "rankscope.torch_hooks._native.Boundaries",
    .tp_basicsize = sizeof(Boundaries),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .tp_new = PyType_GenericNew,
    .tp_init = (initproc)boundaries_init,
    .tp_dealloc = (destructor)boundaries_dealloc,
    .tp_traverse = (traverseproc)boundaries_traverse,
    .tp_clear = (inquiry)boundaries_clear,
    .tp_methods = methods,
    .tp_members = members,
};
