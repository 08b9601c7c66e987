/* One process group as a rank sees it: what group_state.py does. */

#include "native.h"
#include <string.h>

/* Sequence number of the group's latest operation, MISSING where torch does not say, -1 with an exception set. */
static long long sequence_now(GroupState *self)
{
    if (self->sequence_of == NULL)
        return MISSING;
    PyObject *value = PyObject_CallNoArgs(self->sequence_of);
    PyObject *number = value == NULL ? NULL : PyNumber_Long(value);
    long long sequence = number == NULL ? -1 : PyLong_AsLongLong(number);
    Py_XDECREF(value);
    Py_XDECREF(number);
    if (!failed(sequence))
        return sequence;
    if (PyErr_ExceptionMatches(PyExc_RuntimeError) || PyErr_ExceptionMatches(PyExc_TypeError) ||
        PyErr_ExceptionMatches(PyExc_ValueError)) {
        PyErr_Clear();
        Py_CLEAR(self->sequence_of);
        return MISSING;
    }
    return -1;
}

GroupState *group_at(PyObject *states, Py_ssize_t at)
{
    PyObject *state = PyList_Check(states) && at < PyList_GET_SIZE(states) ? PyList_GET_ITEM(states, at) : NULL;
    if (state != NULL && PyObject_TypeCheck(state, &GroupStateType) && ((GroupState *)state)->name != NULL)
        return (GroupState *)Py_NewRef(state);
    PyErr_SetString(PyExc_TypeError, "process groups are a list of GroupState, the whole job's first");
    return NULL;
}

int group_since_asked(GroupState *self, long long *first, long long *last)
{
    long long before = self->sequence, latest = sequence_now(self);
    if (failed(latest))
        return -1;
    self->sequence = latest;
    int known = before != MISSING && latest > before;
    *first = known ? before + 1 : MISSING;
    *last = known ? latest : MISSING;
    return 0;
}

static void put_text(char *field, size_t size, PyObject *bytes)
{
    memset(field, 0, size);
    memcpy(field, PyBytes_AS_STRING(bytes), (size_t)PyBytes_GET_SIZE(bytes));
}

void group_append(Ring *ring, const GroupState *self, long long step, long long count, long long own_ns,
                  long long wait_ns, int on_device, int unseen, long long first, long long last)
{
    /* The order is GroupRecord's. */
    GroupFields fields = {
        .before = {step, self->size, count, own_ns, wait_ns, on_device},
        .after = {self->kind, MISSING, MISSING, unseen, first, last},
    };
    put_text(fields.name, sizeof fields.name, self->name);
    put_text(fields.members, sizeof fields.members, self->members);
    ring_append(ring, GROUP_KIND, &fields, sizeof fields);
}

static int group_init(GroupState *self, PyObject *arguments, PyObject *keywords)
{
    static char *names[] = {"name", "kind", "size", "members", "sequence", NULL};
    PyObject *name, *members, *sequence = Py_None;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "SLLS|O", names, &name, &self->kind, &self->size, &members,
                                     &sequence))
        return -1;
    if (PyBytes_GET_SIZE(name) > GROUP_NAME_BYTES || PyBytes_GET_SIZE(members) > GROUP_MEMBERS_BYTES) {
        PyErr_SetString(PyExc_ValueError, "a group's name has 48 bytes at most, its members 80");
        return -1;
    }
    Py_XSETREF(self->name, Py_NewRef(name));
    Py_XSETREF(self->members, Py_NewRef(members));
    Py_XSETREF(self->sequence_of, sequence == Py_None ? NULL : Py_NewRef(sequence));
    self->count = self->wait_ns = 0;
    self->sequence = sequence_now(self);
    return failed(self->sequence) ? -1 : 0;
}

static PyObject *group_now(GroupState *self, PyObject *Py_UNUSED(ignored))
{
    long long sequence = sequence_now(self);
    return failed(sequence) ? NULL : PyLong_FromLongLong(sequence);
}

static int group_traverse(GroupState *self, visitproc visit, void *arg)
{
    Py_VISIT(self->sequence_of);
    return 0;
}

static int group_clear(GroupState *self)
{
    Py_CLEAR(self->sequence_of);
    return 0;
}

static void group_dealloc(GroupState *self)
{
    PyObject_GC_UnTrack(self);
    group_clear(self);
    Py_CLEAR(self->name);
    Py_CLEAR(self->members);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

#define NUMBER(name) {#name, T_LONGLONG, offsetof(GroupState, name), 0, NULL}
static PyMemberDef members[] = {
    NUMBER(kind),
    NUMBER(size),
    NUMBER(count),
    NUMBER(wait_ns),
    NUMBER(sequence),
    {"name", T_OBJECT_EX, offsetof(GroupState, name), READONLY, NULL},
    {"members", T_OBJECT_EX, offsetof(GroupState, members), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyMethodDef methods[] = {
    {"now", (PyCFunction)group_now, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

PyTypeObject GroupStateType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "rankscope.torch_hooks._native.GroupState",
    .tp_basicsize = sizeof(GroupState),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .tp_new = PyType_GenericNew,
    .tp_init = (initproc)group_init,
    .tp_dealloc = (destructor)group_dealloc,
    .tp_traverse = (traverseproc)group_traverse,
    .tp_clear = (inquiry)group_clear,
    .tp_methods = methods,
    .tp_members = members,
};
