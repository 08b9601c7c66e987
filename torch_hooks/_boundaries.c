/* The boundaries of a step in C: what boundaries.py does, byte for byte, at a fraction of its cost.

   boundaries.py is the reference and says what each member means; tests hold the two to each other. Every method runs
   with the interpreter's lock held, so the fields need none of their own. The ring is mapped and read by another
   process: a slot's checksum is stored last, with release order, and a reader believes nothing that it does not cover. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

enum { NONE, DATA_WAIT, FORWARD, BACKWARD, COLLECTIVE_WAIT, OPTIMIZER, CHECKPOINT, EVALUATION, OTHER, ENDED, H2D, SYNC,
       BUBBLE, PHASES };

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the ring is little-endian: on this machine boundaries.py writes it"
#endif

#define MISSING INT64_MIN
#define STEP_KIND 1
#define FIELDS 38
#define HEADER_BYTES 4096
#define STATUS_OFFSET 2048
#define SLOT_BYTES 384
/* Kind and length (2 bytes each), sequence number (8), fields: what the checksum covers. */
#define BODY_BYTES (12 + 8 * FIELDS)

typedef struct {
    PyObject_HEAD
    Py_buffer ring;
    PyObject *clock;         /* None: CLOCK_MONOTONIC, read here */
    PyObject *timeline_mark; /* None where there is no device clock */
    long long slots, spent[PHASES], since_ns, start_ns, timed_ns, wait_in_backward_ns;
    long long step, phase, depth, flags, sync_count;
    long long work, loader_ready, loader_workers, collate_ns, loader_cpu_ns, loader_io_ns;
    long long backward_count, microbatches, cpu_ns, runqueue_ns, hook_ns;
    long long allocated_bytes, reserved_bytes, peak_bytes, alloc_retries;
    long long last_step_ns, last_data_wait_ns;
    char sampled, copies_watched;
} Boundaries;

static uint32_t crc_table[8][256];

static void fill_crc_table(void)
{
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t value = byte;
        for (int bit = 0; bit < 8; bit++)
            value = value & 1 ? value >> 1 ^ 0xEDB88320u : value >> 1;
        crc_table[0][byte] = value;
    }
    for (uint32_t byte = 0; byte < 256; byte++)
        for (int at = 1; at < 8; at++)
            crc_table[at][byte] = crc_table[at - 1][byte] >> 8 ^ crc_table[0][crc_table[at - 1][byte] & 0xFF];
}

/* CRC-32 as zlib's, eight bytes a turn. */
static uint32_t crc32_of(const unsigned char *bytes, size_t size)
{
    uint32_t crc = 0xFFFFFFFFu;
    for (; size >= 8; size -= 8, bytes += 8) {
        uint32_t low, high;
        memcpy(&low, bytes, 4);
        memcpy(&high, bytes + 4, 4);
        low ^= crc;
        crc = crc_table[7][low & 0xFF] ^ crc_table[6][low >> 8 & 0xFF] ^ crc_table[5][low >> 16 & 0xFF] ^
              crc_table[4][low >> 24] ^ crc_table[3][high & 0xFF] ^ crc_table[2][high >> 8 & 0xFF] ^
              crc_table[1][high >> 16 & 0xFF] ^ crc_table[0][high >> 24];
    }
    while (size--)
        crc = crc >> 8 ^ crc_table[0][(crc ^ *bytes++) & 0xFF];
    return ~crc;
}

/* Now in ns, or -1 with an exception set. */
static long long now_ns(Boundaries *self)
{
    if (self->clock != NULL && self->clock != Py_None) {
        PyObject *value = PyObject_CallNoArgs(self->clock);
        long long now = value == NULL ? -1 : PyLong_AsLongLong(value);
        Py_XDECREF(value);
        return now;
    }
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static int failed(long long now)
{
    return now == -1 && PyErr_Occurred();
}

static int has_ring(Boundaries *self)
{
    if (self->ring.buf != NULL)
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
    uint64_t *status = (uint64_t *)((char *)self->ring.buf + STATUS_OFFSET);
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

static PyObject *boundaries_switch(Boundaries *self, PyObject *argument)
{
    long long phase = PyLong_AsLongLong(argument), ended = self->phase;
    if (failed(phase) || !is_phase(phase) || !is_phase(ended) || !has_ring(self))
        return NULL;
    long long now = now_ns(self);
    if (failed(now))
        return NULL;
    self->spent[ended] += now - self->since_ns;
    self->since_ns = now;
    self->phase = phase;
    set_status(self, now, phase);
    if (self->timeline_mark != NULL && self->timeline_mark != Py_None) {
        PyObject *done = PyObject_CallFunction(self->timeline_mark, "LLL", ended, phase, now);
        if (done == NULL)
            return NULL;
        Py_DECREF(done);
    }
    if (self->sampled) {
        long long after = now_ns(self);
        if (failed(after))
            return NULL;
        self->timed_ns += after - now;
    }
    return PyLong_FromLongLong(now);
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

static PyObject *boundaries_wait_begins(Boundaries *self, PyObject *argument)
{
    long long phase = PyLong_AsLongLong(argument);
    if (failed(phase) || !is_phase(phase) || !has_ring(self))
        return NULL;
    long long now = now_ns(self);
    if (failed(now))
        return NULL;
    set_status(self, now, phase);
    return PyLong_FromLongLong(now);
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
    if (failed(phase) || !is_phase(phase) || !has_ring(self))
        return NULL;
    long long now = now_ns(self);
    if (failed(now))
        return NULL;
    long long waited = now - began;
    set_status(self, now, self->phase);
    if (is_carved(self->phase)) {
        self->spent[phase] += waited;
        self->since_ns += waited;
        if (phase == COLLECTIVE_WAIT && self->phase != BACKWARD)
            self->wait_in_backward_ns -= waited;
    }
    return PyLong_FromLongLong(waited);
}

/* write_step(sequence, end_ns, gc_ns, gc_count, compile_ns, recompiles, flags, collectives) -> None */
static PyObject *boundaries_write_step(Boundaries *self, PyObject *const *arguments, Py_ssize_t count)
{
    long long given[8];
    if (count != 8) {
        PyErr_SetString(PyExc_TypeError, "write_step takes 8 arguments");
        return NULL;
    }
    for (Py_ssize_t at = 0; at < count; at++) {
        given[at] = PyLong_AsLongLong(arguments[at]);
        if (failed(given[at]))
            return NULL;
    }
    if (!has_ring(self))
        return NULL;
    if (given[0] < 1) {
        PyErr_SetString(PyExc_ValueError, "sequence numbers begin at 1");
        return NULL;
    }
    const long long *spent = self->spent;
    long long own = spent[BACKWARD], wait = spent[COLLECTIVE_WAIT], collate = self->collate_ns;
    /* Copied whole into the slot: the order is StepRecord's. */
    const int64_t fields[FIELDS] = {
        self->step, self->start_ns, given[1], spent[DATA_WAIT], spent[FORWARD] + spent[H2D],
        own + wait + self->wait_in_backward_ns, spent[OPTIMIZER], spent[CHECKPOINT], spent[EVALUATION],
        spent[NONE] + spent[OTHER], own, spent[SYNC], self->sync_count, given[2], given[3], given[4],
        self->cpu_ns, self->runqueue_ns, self->allocated_bytes, self->reserved_bytes, self->peak_bytes,
        self->alloc_retries, self->work, self->loader_ready, self->loader_workers, self->hook_ns, self->backward_count,
        self->copies_watched ? spent[H2D] : MISSING, wait, spent[BUBBLE],
        collate < 0 ? collate : spent[DATA_WAIT] - collate, collate, self->loader_cpu_ns, self->loader_io_ns,
        given[5], given[6], self->microbatches, given[7],
    };
    unsigned char body[BODY_BYTES];
    const uint16_t head[2] = {STEP_KIND, 8 * FIELDS};
    const uint64_t sequence = (uint64_t)given[0];
    memcpy(body, head, 4);
    memcpy(body + 4, &sequence, 8);
    memcpy(body + 12, fields, sizeof fields);
    unsigned char *slot = (unsigned char *)self->ring.buf + HEADER_BYTES + (given[0] - 1) % self->slots * SLOT_BYTES;
    memcpy(slot + 4, body, BODY_BYTES);
    __atomic_store_n((uint32_t *)slot, crc32_of(body, BODY_BYTES), __ATOMIC_RELEASE);
    Py_RETURN_NONE;
}

static PyObject *boundaries_next_step(Boundaries *self, PyObject *argument)
{
    long long now = PyLong_AsLongLong(argument);
    if (failed(now))
        return NULL;
    self->last_step_ns = now - self->start_ns;
    self->last_data_wait_ns = self->spent[DATA_WAIT];
    memset(self->spent, 0, sizeof self->spent);
    self->start_ns = now;
    if (self->collate_ns > 0)
        self->collate_ns = 0;
    self->backward_count = self->microbatches = self->sync_count = self->wait_in_backward_ns = self->flags = 0;
    self->step++;
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
    static char *names[] = {"ring", "slots", "monotonic_ns", NULL};
    PyObject *ring, *clock = Py_None;
    long long slots;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "OL|O", names, &ring, &slots, &clock))
        return -1;
    Py_buffer view;
    if (PyObject_GetBuffer(ring, &view, PyBUF_WRITABLE) < 0)
        return -1;
    if (slots < 1 || slots > (view.len - HEADER_BYTES) / SLOT_BYTES || (uintptr_t)view.buf % 8) {
        PyBuffer_Release(&view);
        PyErr_SetString(PyExc_ValueError, "not a ring of that many slots");
        return -1;
    }
    if (self->ring.obj != NULL)
        PyBuffer_Release(&self->ring);
    self->ring = view;
    self->slots = slots;
    Py_INCREF(clock);
    Py_XSETREF(self->clock, clock);
    Py_INCREF(Py_None);
    Py_XSETREF(self->timeline_mark, Py_None);
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
    Py_VISIT(self->ring.obj);
    Py_VISIT(self->clock);
    Py_VISIT(self->timeline_mark);
    return 0;
}

static int boundaries_clear(Boundaries *self)
{
    Py_CLEAR(self->clock);
    Py_CLEAR(self->timeline_mark);
    return 0;
}

static void boundaries_dealloc(Boundaries *self)
{
    PyObject_GC_UnTrack(self);
    boundaries_clear(self);
    if (self->ring.obj != NULL)
        PyBuffer_Release(&self->ring);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

#define NUMBER(name) {#name, T_LONGLONG, offsetof(Boundaries, name), 0, NULL}
static PyMemberDef members[] = {
    NUMBER(step),
    NUMBER(phase),
    NUMBER(depth),
    NUMBER(flags),
    NUMBER(sync_count),
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
    {"timeline_mark", T_OBJECT, offsetof(Boundaries, timeline_mark), 0, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyMethodDef methods[] = {
    {"switch", (PyCFunction)boundaries_switch, METH_O, NULL},
    {"synchronized", (PyCFunction)boundaries_synchronized, METH_O, NULL},
    {"wait_begins", (PyCFunction)boundaries_wait_begins, METH_O, NULL},
    {"wait_ends", (PyCFunction)(void (*)(void))boundaries_wait_ends, METH_FASTCALL, NULL},
    {"spent_ns", (PyCFunction)boundaries_spent_ns, METH_O, NULL},
    {"end_wait_ns", (PyCFunction)boundaries_end_wait_ns, METH_NOARGS, NULL},
    {"write_step", (PyCFunction)(void (*)(void))boundaries_write_step, METH_FASTCALL, NULL},
    {"next_step", (PyCFunction)boundaries_next_step, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static PyTypeObject type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "rankscope.torch_hooks._boundaries.Boundaries",
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

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, .m_name = "_boundaries", .m_size = -1};

PyMODINIT_FUNC PyInit__boundaries(void)
{
    fill_crc_table();
    if (PyType_Ready(&type) < 0)
        return NULL;
    PyObject *made = PyModule_Create(&module);
    if (made != NULL && PyModule_AddIntConstant(made, "FIELDS", FIELDS) < 0)
        Py_CLEAR(made);
    Py_INCREF(&type);
    if (made != NULL && PyModule_AddObject(made, "Boundaries", (PyObject *)&type) < 0) {
        Py_DECREF(&type);
        Py_CLEAR(made);
    }
    return made;
}
