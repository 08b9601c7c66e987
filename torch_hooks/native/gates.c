/* What stands in the place of torch's own functions on the hot path: what gates.py does.

   Each is an object that is called like the function it replaces, binds like one where it lies in a class, and has
   attributes. The listener's methods are looked up at each call: they are replaced when the watching begins or ends. */

#include "native.h"
#include <time.h>

/* Key of our hook among a tensor's own; torch's are numbers. */
#define STAMP "rankscope"

static PyObject *name_data_begin, *name_data_end, *name_backward_begin, *name_backward_own_end, *name_backward_end,
    *name_grad_fn, *name_hooks, *name_register, *name_stamp, *ordered_dict;

typedef struct {
    PyObject_HEAD
    vectorcallfunc call;
    PyObject *attributes, *original, *listener;
    PyObject *queue_callback, *stamp, *own_end; /* of a backward gate */
    char queued;
} Gate;

/* Call a method of the listener; NULL with an exception set. */
static PyObject *tell(Gate *self, PyObject *name, PyObject *argument)
{
    PyObject *method = PyObject_GetAttr(self->listener, name);
    if (method == NULL)
        return NULL;
    PyObject *answer = argument == NULL ? PyObject_CallNoArgs(method) : PyObject_CallOneArg(method, argument);
    Py_DECREF(method);
    return answer;
}

/* The same after the original, whose exception, if any, goes on: `result` is NULL then, and is returned. */
static PyObject *tell_after(Gate *self, PyObject *name, PyObject *argument, PyObject *result)
{
    PyObject *kind, *error, *trace;
    PyErr_Fetch(&kind, &error, &trace);
    PyObject *answer = tell(self, name, argument);
    if (answer == NULL) {
        /* As in Python: what the listener lets out takes the place of what the original raised. */
        Py_XDECREF(result);
        Py_XDECREF(kind);
        Py_XDECREF(error);
        Py_XDECREF(trace);
        return NULL;
    }
    Py_DECREF(answer);
    PyErr_Restore(kind, error, trace);
    return result;
}

static PyObject *next_call(PyObject *callable, PyObject *const *arguments, size_t flags, PyObject *keywords)
{
    Gate *self = (Gate *)callable;
    if (PyVectorcall_NARGS(flags) < 1 || (keywords != NULL && PyTuple_GET_SIZE(keywords) > 0)) {
        PyErr_SetString(PyExc_TypeError, "__next__(iterator)");
        return NULL;
    }
    PyObject *told = tell(self, name_data_begin, arguments[0]);
    if (told == NULL)
        return NULL;
    Py_DECREF(told);
    PyObject *batch = PyObject_Vectorcall(self->original, arguments, (size_t)PyVectorcall_NARGS(flags), NULL);
    return tell_after(self, name_data_end, batch == NULL ? Py_None : batch, batch);
}

/* Put the stamp among the hooks of one root; its dictionary of hooks is added to `placed`. -1 with an exception set. */
static int hook_root(Gate *self, PyObject *root, PyObject *placed)
{
    PyObject *node = PyObject_GetAttr(root, name_grad_fn);
    if (node == NULL || node == Py_None) {
        Py_XDECREF(node);
        return node == NULL ? -1 : 0;
    }
    int result = -1;
    PyObject *hooks = PyObject_GetAttr(root, name_hooks);
    if (hooks == Py_None) {
        Py_SETREF(hooks, PyObject_CallNoArgs(ordered_dict));
        if (hooks != NULL && PyObject_SetAttr(root, name_hooks, hooks) == 0) {
            PyObject *done = PyObject_CallMethodOneArg(node, name_register, root);
            result = done == NULL ? -1 : 0;
            Py_XDECREF(done);
        }
    } else if (hooks != NULL)
        result = 0;
    if (result == 0)
        result = PyObject_SetItem(hooks, name_stamp, self->stamp) < 0 || PyList_Append(placed, hooks) < 0 ? -1 : 0;
    Py_XDECREF(hooks);
    Py_DECREF(node);
    return result;
}

/* Where the stamp was put: a list, or NULL with no exception set where it could not be. */
static PyObject *hook_roots(Gate *self, PyObject *outputs)
{
    PyObject *placed = PyList_New(0);
    if (placed == NULL) {
        PyErr_Clear();
        return NULL;
    }
    int result = 0;
    if (PyTuple_Check(outputs) || PyList_Check(outputs)) {
        for (Py_ssize_t at = 0; result == 0 && at < PySequence_Fast_GET_SIZE(outputs); at++)
            result = hook_root(self, PySequence_Fast_GET_ITEM(outputs, at), placed);
    } else
        result = hook_root(self, outputs, placed);
    if (result < 0)
        /* A root that is none of torch's tensors (an edge of the graph) has no hook. */
        PyErr_Clear();
    return placed;
}

static void unhook_roots(PyObject *placed)
{
    PyObject *kind, *error, *trace;
    PyErr_Fetch(&kind, &error, &trace);
    for (Py_ssize_t at = 0; at < PyList_GET_SIZE(placed); at++)
        if (PyObject_DelItem(PyList_GET_ITEM(placed, at), name_stamp) < 0)
            PyErr_Clear();
    PyErr_Restore(kind, error, trace);
}

static PyObject *backward_call(PyObject *callable, PyObject *const *arguments, size_t flags, PyObject *keywords)
{
    Gate *self = (Gate *)callable;
    PyObject *told = tell(self, name_backward_begin, NULL), *placed = NULL;
    int stamps = told == NULL ? -1 : PyObject_IsTrue(told);
    Py_XDECREF(told);
    if (stamps < 0)
        return NULL;
    if (stamps && PyVectorcall_NARGS(flags) > 0) {
        self->queued = 0;
        placed = hook_roots(self, arguments[0]);
    }
    PyObject *result = PyObject_Vectorcall(self->original, arguments, (size_t)PyVectorcall_NARGS(flags), keywords);
    if (placed != NULL) {
        unhook_roots(placed);
        Py_DECREF(placed);
    }
    return tell_after(self, name_backward_end, NULL, result);
}

/* DDP waits in an engine callback that it queues when its first gradient is ready; callbacks run in the order they
   were queued, and a hook on a root runs before any gradient is ready. */
static PyObject *gate_stamp(PyObject *object, PyObject *Py_UNUSED(gradient))
{
    Gate *self = (Gate *)object;
    if (self->queued || self->queue_callback == NULL)
        Py_RETURN_NONE;
    self->queued = 1;
    PyObject *done = PyObject_CallOneArg(self->queue_callback, self->own_end);
    if (done == NULL)
        return NULL;
    Py_DECREF(done);
    Py_RETURN_NONE;
}

static PyObject *gate_own_end(PyObject *object, PyObject *Py_UNUSED(ignored))
{
    Gate *self = (Gate *)object;
    if (self->listener == NULL)
        Py_RETURN_NONE;
    return tell(self, name_backward_own_end, NULL);
}

/* A collate gate's listener is the boundaries. */
static PyObject *collate_call(PyObject *callable, PyObject *const *arguments, size_t flags, PyObject *keywords)
{
    Gate *self = (Gate *)callable;
    Boundaries *clock = (Boundaries *)self->listener;
    struct timespec began, ended;
    clock_gettime(CLOCK_MONOTONIC, &began);
    PyObject *result = PyObject_Vectorcall(self->original, arguments, (size_t)PyVectorcall_NARGS(flags), keywords);
    clock_gettime(CLOCK_MONOTONIC, &ended);
    clock->collate_ns += (ended.tv_sec - began.tv_sec) * 1000000000LL + ended.tv_nsec - began.tv_nsec;
    return result;
}

static PyObject *bind(PyObject *self, PyObject *object, PyObject *Py_UNUSED(type))
{
    return object == NULL || object == Py_None ? Py_NewRef(self) : PyMethod_New(self, object);
}

static int intern_names(void)
{
    struct {
        PyObject **at;
        const char *text;
    } names[] = {
        {&name_data_begin, "data_begin"},
        {&name_data_end, "data_end"},
        {&name_backward_begin, "backward_begin"},
        {&name_backward_own_end, "backward_own_end"},
        {&name_backward_end, "backward_end"},
        {&name_grad_fn, "grad_fn"},
        {&name_hooks, "_backward_hooks"},
        {&name_register, "_register_hook_dict"},
        {&name_stamp, STAMP},
    };
    for (size_t at = 0; at < sizeof names / sizeof *names; at++)
        if (*names[at].at == NULL && (*names[at].at = PyUnicode_InternFromString(names[at].text)) == NULL)
            return -1;
    if (ordered_dict == NULL) {
        PyObject *collections = PyImport_ImportModule("collections");
        ordered_dict = collections == NULL ? NULL : PyObject_GetAttrString(collections, "OrderedDict");
        Py_XDECREF(collections);
    }
    return ordered_dict == NULL ? -1 : 0;
}

static Gate *make_gate(PyTypeObject *type, vectorcallfunc call, PyObject *original, PyObject *listener)
{
    if (intern_names() < 0)
        return NULL;
    if (!PyCallable_Check(original)) {
        PyErr_SetString(PyExc_TypeError, "what is replaced can be called");
        return NULL;
    }
    Gate *self = (Gate *)type->tp_alloc(type, 0);
    if (self != NULL) {
        self->call = call;
        self->original = Py_NewRef(original);
        self->listener = Py_NewRef(listener);
    }
    return self;
}

static PyObject *next_new(PyTypeObject *type, PyObject *arguments, PyObject *keywords)
{
    static char *names[] = {"original", "listener", NULL};
    PyObject *original, *listener;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "OO", names, &original, &listener))
        return NULL;
    return (PyObject *)make_gate(type, next_call, original, listener);
}

static PyObject *backward_new(PyTypeObject *type, PyObject *arguments, PyObject *keywords)
{
    static PyMethodDef stamp = {"stamp", gate_stamp, METH_O, NULL};
    static PyMethodDef own_end = {"own_end", gate_own_end, METH_NOARGS, NULL};
    static char *names[] = {"original", "listener", "queue_callback", NULL};
    PyObject *original, *listener, *queue_callback;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "OOO", names, &original, &listener, &queue_callback))
        return NULL;
    Gate *self = make_gate(type, backward_call, original, listener);
    if (self == NULL)
        return NULL;
    self->queue_callback = Py_NewRef(queue_callback);
    self->stamp = PyCFunction_New(&stamp, (PyObject *)self);
    self->own_end = PyCFunction_New(&own_end, (PyObject *)self);
    if (self->stamp == NULL || self->own_end == NULL)
        Py_CLEAR(self);
    return (PyObject *)self;
}

static PyObject *collate_new(PyTypeObject *type, PyObject *arguments, PyObject *keywords)
{
    static char *names[] = {"collate", "clock", NULL};
    PyObject *collate, *clock;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "OO!", names, &collate, &BoundariesType, &clock))
        return NULL;
    return (PyObject *)make_gate(type, collate_call, collate, clock);
}

static int gate_traverse(Gate *self, visitproc visit, void *arg)
{
    Py_VISIT(self->attributes);
    Py_VISIT(self->original);
    Py_VISIT(self->listener);
    Py_VISIT(self->queue_callback);
    Py_VISIT(self->stamp);
    Py_VISIT(self->own_end);
    return 0;
}

static int gate_clear(Gate *self)
{
    Py_CLEAR(self->attributes);
    Py_CLEAR(self->queue_callback);
    Py_CLEAR(self->stamp);
    Py_CLEAR(self->own_end);
    Py_CLEAR(self->listener);
    Py_CLEAR(self->original);
    return 0;
}

static void gate_dealloc(Gate *self)
{
    PyObject_GC_UnTrack(self);
    gate_clear(self);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyGetSetDef computed[] = {
    {"__dict__", PyObject_GenericGetDict, PyObject_GenericSetDict, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

#define GATE_TYPE(title, maker, binds)                                                                                 \
    {                                                                                                                  \
        PyVarObject_HEAD_INIT(NULL, 0)                                                                                 \
        .tp_name = "rankscope.torch_hooks._native." title,                                                             \
        .tp_basicsize = sizeof(Gate),                                                                                  \
        .tp_dictoffset = offsetof(Gate, attributes),                                                                   \
        .tp_vectorcall_offset = offsetof(Gate, call),                                                                  \
        .tp_call = PyVectorcall_Call,                                                                                  \
        .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL |                             \
                    (binds ? Py_TPFLAGS_METHOD_DESCRIPTOR : 0),                                                        \
        .tp_descr_get = binds ? bind : NULL,                                                                           \
        .tp_new = maker,                                                                                               \
        .tp_dealloc = (destructor)gate_dealloc,                                                                        \
        .tp_traverse = (traverseproc)gate_traverse,                                                                    \
        .tp_clear = (inquiry)gate_clear,                                                                               \
        .tp_getset = computed,                                                                                         \
    }

PyTypeObject NextGateType = GATE_TYPE("next_gate", next_new, 1);
PyTypeObject BackwardGateType = GATE_TYPE("backward_gate", backward_new, 0);
PyTypeObject CollateGateType = GATE_TYPE("collate_gate", collate_new, 0);
