/* What operations on process groups, and the waits for them, tell in passing: what hot_collectives.py does. */

#include "native.h"

#define MOST_WORKS 512

typedef struct {
    PyObject_HEAD
    Boundaries *clock;
    PyObject *give_up;
    PyObject *whole, *latest;  /* of the whole job, None while nothing is watched; of the latest operation */
    PyObject *states, *works;  /* dict of a process group's identity to its state; of a work's */
    unsigned long thread;
} HotCollectives;

static PyObject *name_meet, *name_sent, *name_record;

static int heard(HotCollectives *self)
{
    return self->clock != NULL && is_there(self->whole) && PyThread_get_thread_ident() == self->thread;
}

/* A state as it may lie in an attribute or a dict that Python code fills; NULL with an exception set. */
static GroupState *as_state(PyObject *object)
{
    if (object != NULL && PyObject_TypeCheck(object, &GroupStateType))
        return (GroupState *)object;
    if (!PyErr_Occurred())
        PyErr_SetString(PyExc_TypeError, "a group is a GroupState");
    return NULL;
}

/* The state of a process group, made where it is met for the first time. A new reference. */
static PyObject *state_of(HotCollectives *self, PyObject *group, PyObject *name)
{
    PyObject *key = PyLong_FromVoidPtr(group);
    if (key == NULL)
        return NULL;
    PyObject *state = Py_XNewRef(PyDict_GetItemWithError(self->states, key));
    Py_DECREF(key);
    if (state == NULL && !PyErr_Occurred())
        state = PyObject_CallMethodObjArgs((PyObject *)self, name_meet, group, name, NULL);
    if (as_state(state) == NULL)
        Py_CLEAR(state);
    return state;
}

/* What is remembered of a work until it is waited for. A new reference. */
static PyObject *memory_of(HotCollectives *self, const Operation *operation, PyObject *state)
{
    if (!operation->to_peer)
        return Py_NewRef(state);
    PyObject *rest = PyTuple_New(operation->count - 1), *known = NULL;
    if (rest == NULL)
        return NULL;
    for (Py_ssize_t at = 1; at < operation->count; at++)
        PyTuple_SET_ITEM(rest, at - 1, Py_NewRef(operation->arguments[at]));
    known = PyObject_CallMethodObjArgs((PyObject *)self, name_sent, state, operation->name, rest, NULL);
    Py_DECREF(rest);
    return known;
}

static int issue(HotCollectives *self, const Operation *operation, PyObject *work)
{
    PyObject *state = state_of(self, operation->arguments[0], operation->name);
    if (state == NULL)
        return -1;
    ((GroupState *)state)->count++;
    if (operation->shards)
        ((GroupState *)state)->kind = SHARD;
    self->clock->issued++;
    Py_XSETREF(self->latest, Py_NewRef(state));
    if (PyDict_GET_SIZE(self->works) >= MOST_WORKS)
        PyDict_Clear(self->works);
    PyObject *key = PyLong_FromVoidPtr(work), *known = memory_of(self, operation, state);
    int result = key == NULL || known == NULL ? -1 : PyDict_SetItem(self->works, key, known);
    Py_XDECREF(known);
    Py_XDECREF(key);
    Py_DECREF(state);
    return result;
}

int collectives_issued(PyObject *collectives, const Operation *operation, PyObject *work)
{
    HotCollectives *self = (HotCollectives *)collectives;
    return heard(self) ? settle(issue(self, operation, work), self->give_up) : 0;
}

/* What is remembered of a work, which is forgotten: a new reference, NULL where nothing is; -1 with an exception set. */
static int take_work(HotCollectives *self, PyObject *work, PyObject **known)
{
    *known = NULL;
    if (work == NULL || work == Py_None || PyDict_GET_SIZE(self->works) == 0)
        return 0;
    PyObject *key = PyLong_FromVoidPtr(work);
    if (key == NULL)
        return -1;
    *known = Py_XNewRef(PyDict_GetItemWithError(self->works, key));
    int result = *known != NULL ? PyDict_DelItem(self->works, key) : PyErr_Occurred() ? -1 : 0;
    Py_DECREF(key);
    return result;
}

static int begin(HotCollectives *self, PyObject *work, Wait *wait)
{
    if (take_work(self, work, &wait->known) < 0)
        return -1;
    wait->phase = wait->known != NULL && PyTuple_Check(wait->known) ? BUBBLE : COLLECTIVE_WAIT;
    wait->began = wait_begins(self->clock, wait->phase);
    if (failed(wait->began))
        return -1;
    PyObject *timeline = self->clock->timeline;
    return is_there(timeline) ? timeline_wait_begins(timeline, wait->phase, wait->began) : 0;
}

int collectives_begin_wait(PyObject *collectives, PyObject *work, Wait *wait)
{
    HotCollectives *self = (HotCollectives *)collectives;
    *wait = (Wait){0};
    if (!heard(self))
        return 0;
    int result = begin(self, work, wait);
    wait->heard = result >= 0;
    return settle(result, self->give_up);
}

static int end(HotCollectives *self, const Wait *wait)
{
    long long waited = wait_ends(self->clock, wait->began, wait->phase);
    if (failed(waited))
        return -1;
    PyObject *known = wait->known, *of = known == NULL ? self->whole : known;
    int to_peer = PyTuple_Check(of);
    if (to_peer && PyTuple_GET_SIZE(of) > 0)
        of = PyTuple_GET_ITEM(of, 0);
    GroupState *state = as_state(of);
    if (state == NULL)
        return -1;
    state->wait_ns += waited;
    Py_INCREF(state);
    PyObject *timeline = self->clock->timeline;
    int result = is_there(timeline) ? timeline_wait_ends(timeline, (PyObject *)state, wait->began + waited) : 0;
    Py_DECREF(state);
    if (result < 0 || !to_peer)
        return result;
    PyObject *began_ns = PyLong_FromLongLong(wait->began), *waited_ns = PyLong_FromLongLong(waited);
    result = began_ns == NULL || waited_ns == NULL
                 ? -1
                 : quiet_call(PyObject_CallMethodObjArgs((PyObject *)self, name_record, known, began_ns, waited_ns,
                                                         NULL));
    Py_XDECREF(began_ns);
    Py_XDECREF(waited_ns);
    return result;
}

int collectives_end_wait(PyObject *collectives, Wait *wait)
{
    HotCollectives *self = (HotCollectives *)collectives;
    int result = 0;
    if (wait->heard && is_there(self->whole))
        result = settle(end(self, wait), self->give_up);
    Py_CLEAR(wait->known);
    return result;
}

static int intern_names(void)
{
    const Name names[] = {{&name_meet, "meet"}, {&name_sent, "sent"}, {&name_record, "record"}};
    return intern_all(names, sizeof names / sizeof *names);
}

static int collectives_init(HotCollectives *self, PyObject *arguments, PyObject *keywords)
{
    static char *names[] = {"clock", "thread", "give_up", NULL};
    PyObject *clock, *give_up;
    unsigned long thread;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O!kO", names, &BoundariesType, &clock, &thread, &give_up))
        return -1;
    if (self->clock != NULL || intern_names() < 0) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_ValueError, "made once");
        return -1;
    }
    self->states = PyDict_New();
    self->works = PyDict_New();
    if (self->states == NULL || self->works == NULL)
        return -1;
    self->give_up = Py_NewRef(give_up);
    self->thread = thread;
    self->clock = (Boundaries *)Py_NewRef(clock);
    return 0;
}

static int collectives_traverse(HotCollectives *self, visitproc visit, void *arg)
{
    Py_VISIT(self->clock);
    Py_VISIT(self->give_up);
    Py_VISIT(self->whole);
    Py_VISIT(self->latest);
    Py_VISIT(self->states);
    Py_VISIT(self->works);
    return 0;
}

static int collectives_clear(HotCollectives *self)
{
    Py_CLEAR(self->clock);
    Py_CLEAR(self->give_up);
    Py_CLEAR(self->whole);
    Py_CLEAR(self->latest);
    Py_CLEAR(self->states);
    Py_CLEAR(self->works);
    return 0;
}

static void collectives_dealloc(HotCollectives *self)
{
    PyObject_GC_UnTrack(self);
    collectives_clear(self);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyMemberDef members[] = {
    {"clock", T_OBJECT_EX, offsetof(HotCollectives, clock), READONLY, NULL},
    {"give_up", T_OBJECT_EX, offsetof(HotCollectives, give_up), READONLY, NULL},
    {"thread", T_ULONG, offsetof(HotCollectives, thread), READONLY, NULL},
    {"default", T_OBJECT, offsetof(HotCollectives, whole), 0, NULL},
    {"latest", T_OBJECT, offsetof(HotCollectives, latest), 0, NULL},
    {"states", T_OBJECT_EX, offsetof(HotCollectives, states), READONLY, NULL},
    {"works", T_OBJECT_EX, offsetof(HotCollectives, works), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

PyTypeObject HotCollectivesType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "rankscope.torch_hooks._native.HotCollectives",
    .tp_basicsize = sizeof(HotCollectives),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .tp_new = PyType_GenericNew,
    .tp_init = (initproc)collectives_init,
    .tp_dealloc = (destructor)collectives_dealloc,
    .tp_traverse = (traverseproc)collectives_traverse,
    .tp_clear = (inquiry)collectives_clear,
    .tp_members = members,
};
