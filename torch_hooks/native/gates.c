/* What stands in the place of torch's own functions on the hot path: what gates.py does.

   Each is an object that is called like the function it replaces, binds like one where it lies in a class, and has
   attributes. The listener's are looked up at each call: they are replaced when the watching begins or ends. */

#include "native.h"
#include <time.h>

static PyObject *name_grad_fn, *name_hooks, *name_register, *name_stamp, *ordered_dict;

typedef struct {
    PyObject_HEAD
    PyObject *data_begin, *data_end, *backward_begin, *backward_own_end, *backward_end, *optimizer_begin,
        *optimizer_end;
} Listener;

typedef struct {
    PyObject_HEAD
    vectorcallfunc call;
    PyObject *attributes, *original;
    Listener *listener;
    Boundaries *clock;                           /* of a collate gate */
    PyObject *queue_callback, *own_end, *anchor; /* of a backward gate */
    PyObject *collectives, *name;                /* of the gates of process groups */
    char queued, shards, to_peer, of_work;
} Gate;

/* Call one of the listener's; NULL with an exception set. */
static PyObject *tell(PyObject *told, PyObject *argument)
{
    if (told == NULL) {
        PyErr_SetString(PyExc_AttributeError, "the listener has no ear for this");
        return NULL;
    }
    Py_INCREF(told);
    PyObject *answer = argument == NULL ? PyObject_CallNoArgs(told) : PyObject_CallOneArg(told, argument);
    Py_DECREF(told);
    return answer;
}

/* The same after the original, whose exception, if any, goes on: `result` is NULL then, and is returned. */
static PyObject *tell_after(PyObject *told, PyObject *argument, PyObject *result)
{
    PyObject *kind, *error, *trace;
    PyErr_Fetch(&kind, &error, &trace);
    PyObject *answer = tell(told, argument);
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
    PyObject *told = tell(self->listener->data_begin, arguments[0]);
    if (told == NULL)
        return NULL;
    Py_DECREF(told);
    PyObject *batch = PyObject_Vectorcall(self->original, arguments, (size_t)PyVectorcall_NARGS(flags), NULL);
    return tell_after(self->listener->data_end, batch == NULL ? Py_None : batch, batch);
}

/* Have the anchor's hooks run when the engine reaches a root; -1 with an exception set. */
static int hook_root(Gate *self, PyObject *root)
{
    PyObject *node = PyObject_GetAttr(root, name_grad_fn);
    if (node == NULL)
        return -1;
    int result = node == Py_None ? 0 : quiet_call(PyObject_CallMethodOneArg(node, name_register, self->anchor));
    Py_DECREF(node);
    return result;
}

/* The roots themselves are left alone. One that is none of torch's tensors (an edge of the graph) has no stamp. */
static void hook_roots(Gate *self, PyObject *outputs)
{
    int result = 0;
    if (PyTuple_Check(outputs) || PyList_Check(outputs)) {
        for (Py_ssize_t at = 0; result == 0 && at < PySequence_Fast_GET_SIZE(outputs); at++)
            result = hook_root(self, PySequence_Fast_GET_ITEM(outputs, at));
    } else
        result = hook_root(self, outputs);
    if (result < 0)
        PyErr_Clear();
}

static PyObject *backward_call(PyObject *callable, PyObject *const *arguments, size_t flags, PyObject *keywords)
{
    Gate *self = (Gate *)callable;
    PyObject *told = tell(self->listener->backward_begin, NULL);
    int stamps = told == NULL ? -1 : PyObject_IsTrue(told);
    Py_XDECREF(told);
    if (stamps < 0)
        return NULL;
    if (stamps && PyVectorcall_NARGS(flags) > 0) {
        self->queued = 0;
        hook_roots(self, arguments[0]);
    }
    PyObject *result = PyObject_Vectorcall(self->original, arguments, (size_t)PyVectorcall_NARGS(flags), keywords);
    self->queued = 1;
    return tell_after(self->listener->backward_end, NULL, result);
}

/* DDP waits in an engine callback that it queues when its first gradient is ready; callbacks run in the order they
   were queued, and a hook on a root runs before any gradient is ready. */
static PyObject *gate_stamp(PyObject *object, PyObject *Py_UNUSED(gradient))
{
    Gate *self = (Gate *)object;
    if (self->queued || self->queue_callback == NULL)
        Py_RETURN_NONE;
    self->queued = 1;
    return PyObject_CallOneArg(self->queue_callback, self->own_end);
}

static PyObject *gate_own_end(PyObject *object, PyObject *Py_UNUSED(ignored))
{
    Gate *self = (Gate *)object;
    if (self->listener == NULL)
        Py_RETURN_NONE;
    return tell(self->listener->backward_own_end, NULL);
}

static PyObject *collate_call(PyObject *callable, PyObject *const *arguments, size_t flags, PyObject *keywords)
{
    Gate *self = (Gate *)callable;
    struct timespec began, ended;
    clock_gettime(CLOCK_MONOTONIC, &began);
    PyObject *result = PyObject_Vectorcall(self->original, arguments, (size_t)PyVectorcall_NARGS(flags), keywords);
    clock_gettime(CLOCK_MONOTONIC, &ended);
    self->clock->collate_ns += (ended.tv_sec - began.tv_sec) * 1000000000LL + ended.tv_nsec - began.tv_nsec;
    return result;
}

static PyObject *operation_call(PyObject *callable, PyObject *const *arguments, size_t flags, PyObject *keywords)
{
    Gate *self = (Gate *)callable;
    Py_ssize_t count = PyVectorcall_NARGS(flags);
    PyObject *work = PyObject_Vectorcall(self->original, arguments, (size_t)count, keywords);
    if (work == NULL || work == Py_None || count < 1)
        return work;
    const Operation operation = {self->name, arguments, count, self->shards, self->to_peer};
    if (collectives_issued(self->collectives, &operation, work) < 0)
        Py_CLEAR(work);
    return work;
}

static PyObject *wait_call(PyObject *callable, PyObject *const *arguments, size_t flags, PyObject *keywords)
{
    Gate *self = (Gate *)callable;
    Py_ssize_t count = PyVectorcall_NARGS(flags);
    Wait wait;
    if (collectives_begin_wait(self->collectives, self->of_work && count > 0 ? arguments[0] : NULL, &wait) < 0) {
        Py_CLEAR(wait.known);
        return NULL;
    }
    PyObject *result = PyObject_Vectorcall(self->original, arguments, (size_t)count, keywords);
    PyObject *kind, *error, *trace;
    PyErr_Fetch(&kind, &error, &trace);
    if (collectives_end_wait(self->collectives, &wait) < 0) {
        Py_XDECREF(result);
        Py_XDECREF(kind);
        Py_XDECREF(error);
        Py_XDECREF(trace);
        return NULL;
    }
    PyErr_Restore(kind, error, trace);
    return result;
}

static PyObject *bind(PyObject *self, PyObject *object, PyObject *Py_UNUSED(type))
{
    return object == NULL || object == Py_None ? Py_NewRef(self) : PyMethod_New(self, object);
}

static int intern_names(void)
{
    const Name names[] = {
        {&name_grad_fn, "grad_fn"},
        {&name_hooks, "_backward_hooks"},
        {&name_register, "_register_hook_dict"},
        {&name_stamp, "rankscope"},
    };
    if (intern_all(names, sizeof names / sizeof *names) < 0)
        return -1;
    if (ordered_dict == NULL) {
        PyObject *collections = PyImport_ImportModule("collections");
        ordered_dict = collections == NULL ? NULL : PyObject_GetAttrString(collections, "OrderedDict");
        Py_XDECREF(collections);
    }
    return ordered_dict == NULL ? -1 : 0;
}

static Gate *make_gate(PyTypeObject *type, vectorcallfunc call, PyObject *original)
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
    }
    return self;
}

static PyObject *next_new(PyTypeObject *type, PyObject *arguments, PyObject *keywords)
{
    static char *names[] = {"original", "listener", NULL};
    PyObject *original, *listener;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "OO!", names, &original, &ListenerType, &listener))
        return NULL;
    Gate *self = make_gate(type, next_call, original);
    if (self != NULL)
        self->listener = (Listener *)Py_NewRef(listener);
    return (PyObject *)self;
}

/* The anchor's hooks are the stamp and nothing else; -1 with an exception set. */
static int hook_anchor(Gate *self)
{
    static PyMethodDef definition = {"stamp", gate_stamp, METH_O, NULL};
    PyObject *stamp = PyCFunction_New(&definition, (PyObject *)self), *hooks = PyObject_CallNoArgs(ordered_dict);
    int result = stamp == NULL || hooks == NULL || PyObject_SetItem(hooks, name_stamp, stamp) < 0 ||
                         PyObject_SetAttr(self->anchor, name_hooks, hooks) < 0
                     ? -1
                     : 0;
    Py_XDECREF(stamp);
    Py_XDECREF(hooks);
    return result;
}

static PyObject *backward_new(PyTypeObject *type, PyObject *arguments, PyObject *keywords)
{
    static PyMethodDef own_end = {"own_end", gate_own_end, METH_NOARGS, NULL};
    static char *names[] = {"original", "listener", "queue_callback", "anchor", NULL};
    PyObject *original, *listener, *queue_callback, *anchor;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "OO!OO", names, &original, &ListenerType, &listener,
                                     &queue_callback, &anchor))
        return NULL;
    Gate *self = make_gate(type, backward_call, original);
    if (self == NULL)
        return NULL;
    /* Only while a backward that is listened to runs: a graph that was kept has the stamp still. */
    self->queued = 1;
    self->listener = (Listener *)Py_NewRef(listener);
    self->queue_callback = Py_NewRef(queue_callback);
    self->anchor = Py_NewRef(anchor);
    self->own_end = PyCFunction_New(&own_end, (PyObject *)self);
    if (self->own_end == NULL || hook_anchor(self) < 0)
        Py_CLEAR(self);
    return (PyObject *)self;
}

static PyObject *collate_new(PyTypeObject *type, PyObject *arguments, PyObject *keywords)
{
    static char *names[] = {"collate", "clock", NULL};
    PyObject *collate, *clock;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "OO!", names, &collate, &BoundariesType, &clock))
        return NULL;
    Gate *self = make_gate(type, collate_call, collate);
    if (self != NULL)
        self->clock = (Boundaries *)Py_NewRef(clock);
    return (PyObject *)self;
}

static PyObject *operation_new(PyTypeObject *type, PyObject *arguments, PyObject *keywords)
{
    static char *names[] = {"original", "collectives", "name", "shards", "to_peer", NULL};
    PyObject *original, *collectives, *name;
    int shards, to_peer;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "OO!Upp", names, &original, &HotCollectivesType, &collectives,
                                     &name, &shards, &to_peer))
        return NULL;
    Gate *self = make_gate(type, operation_call, original);
    if (self != NULL) {
        self->collectives = Py_NewRef(collectives);
        self->name = Py_NewRef(name);
        self->shards = (char)shards;
        self->to_peer = (char)to_peer;
    }
    return (PyObject *)self;
}

static PyObject *wait_new(PyTypeObject *type, PyObject *arguments, PyObject *keywords)
{
    static char *names[] = {"original", "collectives", "of_work", NULL};
    PyObject *original, *collectives;
    int of_work;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "OO!p", names, &original, &HotCollectivesType, &collectives,
                                     &of_work))
        return NULL;
    Gate *self = make_gate(type, wait_call, original);
    if (self != NULL) {
        self->collectives = Py_NewRef(collectives);
        self->of_work = (char)of_work;
    }
    return (PyObject *)self;
}

static int gate_traverse(Gate *self, visitproc visit, void *arg)
{
    Py_VISIT(self->attributes);
    Py_VISIT(self->original);
    Py_VISIT(self->listener);
    Py_VISIT(self->queue_callback);
    Py_VISIT(self->own_end);
    Py_VISIT(self->anchor);
    Py_VISIT(self->clock);
    Py_VISIT(self->collectives);
    return 0;
}

static int gate_clear(Gate *self)
{
    Py_CLEAR(self->attributes);
    Py_CLEAR(self->queue_callback);
    Py_CLEAR(self->own_end);
    Py_CLEAR(self->anchor);
    Py_CLEAR(self->clock);
    Py_CLEAR(self->collectives);
    Py_CLEAR(self->name);
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

static int listener_traverse(Listener *self, visitproc visit, void *arg)
{
    Py_VISIT(self->data_begin);
    Py_VISIT(self->data_end);
    Py_VISIT(self->backward_begin);
    Py_VISIT(self->backward_own_end);
    Py_VISIT(self->backward_end);
    Py_VISIT(self->optimizer_begin);
    Py_VISIT(self->optimizer_end);
    return 0;
}

static int listener_clear(Listener *self)
{
    Py_CLEAR(self->data_begin);
    Py_CLEAR(self->data_end);
    Py_CLEAR(self->backward_begin);
    Py_CLEAR(self->backward_own_end);
    Py_CLEAR(self->backward_end);
    Py_CLEAR(self->optimizer_begin);
    Py_CLEAR(self->optimizer_end);
    return 0;
}

static void listener_dealloc(Listener *self)
{
    PyObject_GC_UnTrack(self);
    listener_clear(self);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

#define EAR(name) {#name, T_OBJECT_EX, offsetof(Listener, name), 0, NULL}
static PyMemberDef ears[] = {
    EAR(data_begin),
    EAR(data_end),
    EAR(backward_begin),
    EAR(backward_own_end),
    EAR(backward_end),
    EAR(optimizer_begin),
    EAR(optimizer_end),
    {NULL, 0, 0, 0, NULL},
};

PyTypeObject ListenerType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "rankscope.torch_hooks._native.Listener",
    .tp_basicsize = sizeof(Listener),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .tp_new = PyType_GenericNew,
    .tp_dealloc = (destructor)listener_dealloc,
    .tp_traverse = (traverseproc)listener_traverse,
    .tp_clear = (inquiry)listener_clear,
    .tp_members = ears,
};

PyTypeObject NextGateType = GATE_TYPE("next_gate", next_new, 1);
PyTypeObject BackwardGateType = GATE_TYPE("backward_gate", backward_new, 0);
PyTypeObject CollateGateType = GATE_TYPE("collate_gate", collate_new, 0);
PyTypeObject OperationGateType = GATE_TYPE("operation_gate", operation_new, 1);
PyTypeObject WaitGateType = GATE_TYPE("wait_gate", wait_new, 1);
