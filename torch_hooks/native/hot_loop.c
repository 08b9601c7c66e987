/* What the choke points call in every step: what hot_loop.py does. */

#include "native.h"

typedef struct {
    PyObject_HEAD
    Boundaries *clock;
    PyObject *give_up, *grad_enabled, *optimizer_made;
    PyObject *training_sources; /* set of int */
    PyObject *asked;            /* dict of int to int */
    PyObject *quiet_iterator;   /* weak reference, or NULL or None */
    unsigned long thread;
    unsigned long long last_asked;
    /* What dicts and attributes would tell of the usual step, without a look into them: whether `last_asked` is among the
       training sources, and `turns` batches asked of it then, which are not in `asked` yet; the iterator seen last, and
       its source. */
    long long turns;
    char trained_on;
    PyObject *iterator; /* borrowed: only compared, while `quiet_iterator` says that it lives */
    unsigned long long iterator_source;
    long long usual_backwards, optimizer_depth;
    char explicit, stamps, rule_settled, loader_seen, stepped, updated_in_backward, optimizer_seen, closure;
} HotLoop;

static PyObject *name_dataset, *name_numel, *name_closure, *name_settle_rule, *name_look_into_loader, *name_work_of,
    *name_updated, *name_optimizer_stepped, *name_watch_copies, *name_unwatch_copies;

static int here(HotLoop *self)
{
    return self->clock != NULL && PyThread_get_thread_ident() == self->thread;
}

static int call(HotLoop *self, PyObject *method)
{
    return quiet_call(PyObject_CallMethodNoArgs((PyObject *)self, method));
}

/* An error of ours ends the watching. */
static PyObject *quietly(HotLoop *self, int result, PyObject *otherwise)
{
    return settle(result, self->give_up) < 0 ? NULL : Py_NewRef(otherwise);
}

static int enter(HotLoop *self, long long phase)
{
    return failed(switch_phase(self->clock, phase)) ? -1 : 0;
}

/* 1 or 0: whether a function without arguments answers true; -1 with an exception set. */
static int ask(PyObject *function)
{
    PyObject *answer = PyObject_CallNoArgs(function);
    int is = answer == NULL ? -1 : PyObject_IsTrue(answer);
    Py_XDECREF(answer);
    return is;
}

static int loop_end_step(HotLoop *self, long long next_phase)
{
    Boundaries *clock = self->clock;
    if (self->explicit)
        clock->flags |= EXPLICIT;
    else if (next_phase == DATA_WAIT && !self->rule_settled && call(self, name_settle_rule) < 0)
        return -1;
    if (self->stepped && clock->backward_count)
        self->usual_backwards = clock->backward_count;
    self->stepped = 0;
    return end_step(clock, next_phase);
}

static int ended_without_optimizer(HotLoop *self)
{
    long long count = self->clock->backward_count;
    if (count == 0)
        return 0;
    if (self->optimizer_seen) {
        if (self->usual_backwards <= 0 || self->usual_backwards > count)
            return 0;
        self->clock->flags |= SKIPPED;
        return 1;
    }
    int made = ask(self->optimizer_made);
    return made < 0 ? -1 : !made;
}

/* Identity of the dataset that an iterator reads, 0 with an exception set. */
static unsigned long long source_of(PyObject *iterator)
{
    PyObject *dataset = PyObject_GetAttr(iterator, name_dataset);
    if (dataset == NULL) {
        if (!PyErr_ExceptionMatches(PyExc_AttributeError))
            return 0;
        PyErr_Clear();
        return (unsigned long long)(uintptr_t)iterator;
    }
    unsigned long long source = (unsigned long long)(uintptr_t)dataset;
    Py_DECREF(dataset);
    return source;
}

/* Put `turns` into `asked`. */
static int count_turns(HotLoop *self)
{
    if (self->turns == 0)
        return 0;
    PyObject *source = PyLong_FromUnsignedLongLong(self->last_asked);
    PyObject *before = source == NULL ? NULL : PyDict_GetItemWithError(self->asked, source);
    PyObject *count = NULL;
    if (!PyErr_Occurred())
        count = PyLong_FromLongLong((before == NULL ? 0 : PyLong_AsLongLong(before)) + self->turns);
    int result = count == NULL ? -1 : PyDict_SetItem(self->asked, source, count);
    Py_XDECREF(count);
    Py_XDECREF(source);
    if (result == 0)
        self->turns = 0;
    return result;
}

/* Whether the source is trained on, as far as is known: 1, 0, or -1 with an exception set. */
static int count_asked(HotLoop *self, PyObject *source)
{
    PyObject *before = PyDict_GetItemWithError(self->asked, source);
    if (before == NULL && PyErr_Occurred())
        return -1;
    PyObject *count = PyLong_FromLongLong(before == NULL ? 1 : PyLong_AsLongLong(before) + 1);
    if (count == NULL)
        return -1;
    int set = PyDict_SetItem(self->asked, source, count);
    Py_DECREF(count);
    if (set < 0)
        return -1;
    Py_ssize_t sources = PySet_Size(self->training_sources);
    return sources <= 0 ? (sources < 0 ? -1 : 1) : PySet_Contains(self->training_sources, source);
}

/* Whether the iterator is the one that needs no look at each batch. */
static int is_quiet(HotLoop *self, PyObject *iterator)
{
    PyObject *reference = self->quiet_iterator;
    if (reference == NULL || !PyWeakref_Check(reference))
        return 0;
#if PY_VERSION_HEX >= 0x030D0000
    PyObject *alive = NULL;
    int found = PyWeakref_GetRef(reference, &alive) > 0 && alive == iterator;
    Py_XDECREF(alive);
    return found;
#else
    return PyWeakref_GetObject(reference) == iterator;
#endif
}

/* Count that a source was asked; whether it is trained on: 1, 0, or -1 with an exception set. */
static int ask_source(HotLoop *self, unsigned long long source)
{
    if (self->trained_on && source == self->last_asked) {
        self->turns++;
        return 1;
    }
    if (count_turns(self) < 0)
        return -1;
    PyObject *number = PyLong_FromUnsignedLongLong(source);
    if (number == NULL)
        return -1;
    int training = count_asked(self, number);
    if (training >= 0) {
        int known = PySet_Contains(self->training_sources, number);
        self->trained_on = known > 0;
        training = known < 0 ? -1 : training;
        self->last_asked = source;
    }
    Py_DECREF(number);
    return training;
}

static int begin_data(HotLoop *self, PyObject *iterator)
{
    int quiet = is_quiet(self, iterator);
    unsigned long long source = quiet && iterator == self->iterator ? self->iterator_source : source_of(iterator);
    if (source == 0)
        return -1;
    self->iterator = iterator;
    self->iterator_source = source;
    int training = ask_source(self, source);
    if (training > 0)
        training = ask(self->grad_enabled);
    if (training < 0)
        return -1;
    if (training == 0)
        return self->clock->phase == EVALUATION ? 0 : enter(self, EVALUATION);
    self->loader_seen = 1;
    int ended = self->stepped ? 1 : ended_without_optimizer(self);
    if (ended < 0 || (ended ? loop_end_step(self, DATA_WAIT) : enter(self, DATA_WAIT)) < 0)
        return -1;
    return quiet ? 0 : quiet_call(PyObject_CallMethodOneArg((PyObject *)self, name_look_into_loader, iterator));
}

static PyObject *loop_data_begin(HotLoop *self, PyObject *iterator)
{
    if (self->explicit || !here(self))
        Py_RETURN_NONE;
    return quietly(self, begin_data(self, iterator), Py_None);
}

static int end_data(HotLoop *self, PyObject *batch)
{
    PyObject *work = Py_NewRef(batch);
    for (;;) {
        PyObject *first = NULL;
        if (PyList_CheckExact(work) && PyList_GET_SIZE(work) > 0)
            first = PyList_GET_ITEM(work, 0);
        else if (PyTuple_CheckExact(work) && PyTuple_GET_SIZE(work) > 0)
            first = PyTuple_GET_ITEM(work, 0);
        if (first == NULL)
            break;
        Py_INCREF(first);
        Py_SETREF(work, first);
    }
    PyObject *count = PyObject_CallMethodNoArgs(work, name_numel);
    if (count == NULL && PyErr_ExceptionMatches(PyExc_AttributeError)) {
        PyErr_Clear();
        count = PyObject_CallMethodOneArg((PyObject *)self, name_work_of, work);
    }
    Py_DECREF(work);
    long long elements = count == NULL ? -1 : PyLong_AsLongLong(count);
    Py_XDECREF(count);
    if (failed(elements))
        return -1;
    self->clock->work = elements;
    if (enter(self, batch == Py_None ? OTHER : FORWARD) < 0)
        return -1;
    return self->clock->sampled ? call(self, name_watch_copies) : 0;
}

static PyObject *loop_data_end(HotLoop *self, PyObject *batch)
{
    if (self->explicit || !here(self) || self->clock->phase == EVALUATION)
        Py_RETURN_NONE;
    return quietly(self, end_data(self, batch), Py_None);
}

/* Loaders that are asked in turn are trained on together; one asked oftener was evaluated on. */
static int learn_sources(HotLoop *self)
{
    if (self->trained_on && PyDict_GET_SIZE(self->asked) == 0) {
        self->turns = 0;
        return 0;
    }
    if (count_turns(self) < 0)
        return -1;
    PyObject *last = PyLong_FromUnsignedLongLong(self->last_asked), *sources = NULL;
    int known = last == NULL ? -1 : PySet_Contains(self->training_sources, last);
    if (known == 0) {
        PyObject *turns = PyDict_GetItemWithError(self->asked, last), *source, *count;
        if (turns == NULL && !PyErr_Occurred())
            PyErr_SetObject(PyExc_KeyError, last);
        sources = turns == NULL ? NULL : PySet_New(NULL);
        known = sources == NULL ? -1 : 0;
        Py_ssize_t at = 0;
        while (known == 0 && PyDict_Next(self->asked, &at, &source, &count)) {
            int same = PyObject_RichCompareBool(count, turns, Py_EQ);
            known = same < 0 || (same && PySet_Add(sources, source) < 0) ? -1 : 0;
        }
        if (known == 0) {
            Py_SETREF(self->training_sources, Py_NewRef(sources));
            self->trained_on = 0;
        }
    }
    Py_XDECREF(sources);
    Py_XDECREF(last);
    if (known >= 0)
        PyDict_Clear(self->asked);
    return known < 0 ? -1 : 0;
}

static int begin_backward(HotLoop *self)
{
    Boundaries *clock = self->clock;
    clock->depth++;
    if (clock->depth > 1)
        return 0;
    if (!self->optimizer_depth || self->closure) {
        clock->backward_count++;
        self->closure = 0;
    }
    if ((self->turns > 0 || PyDict_GET_SIZE(self->asked) > 0) && learn_sources(self) < 0)
        return -1;
    if (clock->phase == OTHER && clock->backward_count)
        clock->phase = FORWARD;
    if (enter(self, BACKWARD) < 0 || (clock->sampled && call(self, name_unwatch_copies) < 0))
        return -1;
    return self->stamps;
}

static PyObject *loop_backward_begin(HotLoop *self, PyObject *Py_UNUSED(ignored))
{
    if (!here(self))
        Py_RETURN_FALSE;
    int stamps = begin_backward(self);
    return quietly(self, stamps, stamps > 0 ? Py_True : Py_False);
}

static PyObject *loop_backward_own_end(HotLoop *self, PyObject *Py_UNUSED(ignored))
{
    if (self->clock == NULL || self->clock->phase != BACKWARD)
        Py_RETURN_NONE;
    return quietly(self, enter(self, COLLECTIVE_WAIT), Py_None);
}

static int end_backward(HotLoop *self)
{
    if (--self->clock->depth)
        return 0;
    if (self->optimizer_depth)
        return enter(self, OPTIMIZER);
    if (self->updated_in_backward) {
        self->updated_in_backward = 0;
        return call(self, name_updated);
    }
    return enter(self, self->loader_seen || self->explicit ? OTHER : FORWARD);
}

static PyObject *loop_backward_end(HotLoop *self, PyObject *Py_UNUSED(ignored))
{
    if (!here(self))
        Py_RETURN_NONE;
    return quietly(self, end_backward(self), Py_None);
}

static int begin_optimizer(HotLoop *self, PyObject *arguments, PyObject *keywords)
{
    if (self->clock->depth) {
        self->updated_in_backward = 1;
        return 0;
    }
    if (++self->optimizer_depth != 1)
        return 0;
    PyObject *closure = Py_None;
    if (PyTuple_Check(arguments) && PyTuple_GET_SIZE(arguments) > 1)
        closure = PyTuple_GET_ITEM(arguments, 1);
    else if (PyDict_Check(keywords)) {
        PyObject *named = PyDict_GetItemWithError(keywords, name_closure);
        if (named == NULL && PyErr_Occurred())
            return -1;
        closure = named == NULL ? Py_None : named;
    }
    self->closure = closure != Py_None;
    return enter(self, self->closure ? FORWARD : OPTIMIZER);
}

static PyObject *loop_optimizer_begin(HotLoop *self, PyObject *const *arguments, Py_ssize_t count)
{
    if (count != 2) {
        PyErr_SetString(PyExc_TypeError, "optimizer_begin(arguments, keywords)");
        return NULL;
    }
    if (!here(self))
        Py_RETURN_NONE;
    return quietly(self, begin_optimizer(self, arguments[0], arguments[1]), Py_None);
}

static int end_optimizer(HotLoop *self, PyObject *optimizer)
{
    if (self->clock->depth || !self->optimizer_depth || --self->optimizer_depth)
        return 0;
    self->optimizer_seen = 1;
    if (self->loader_seen || self->explicit) {
        self->stepped = 1;
        return enter(self, OTHER);
    }
    return quiet_call(PyObject_CallMethodOneArg((PyObject *)self, name_optimizer_stepped, optimizer));
}

static PyObject *loop_optimizer_end(HotLoop *self, PyObject *optimizer)
{
    if (!here(self))
        Py_RETURN_NONE;
    return quietly(self, end_optimizer(self, optimizer), Py_None);
}

static PyObject *hot_loop_end_step(HotLoop *self, PyObject *argument)
{
    long long phase = PyLong_AsLongLong(argument);
    if (failed(phase))
        return NULL;
    if (self->clock == NULL) {
        PyErr_SetString(PyExc_ValueError, "no clock: __init__ was not called");
        return NULL;
    }
    if (loop_end_step(self, phase) < 0)
        return NULL;
    Py_RETURN_NONE;
}

static int intern_names(void)
{
    const Name names[] = {
        {&name_dataset, "_dataset"},
        {&name_numel, "numel"},
        {&name_closure, "closure"},
        {&name_settle_rule, "settle_rule"},
        {&name_look_into_loader, "look_into_loader"},
        {&name_work_of, "work_of"},
        {&name_updated, "updated"},
        {&name_optimizer_stepped, "optimizer_stepped"},
        {&name_watch_copies, "watch_copies"},
        {&name_unwatch_copies, "unwatch_copies"},
    };
    return intern_all(names, sizeof names / sizeof *names);
}

static int loop_init(HotLoop *self, PyObject *arguments, PyObject *keywords)
{
    static char *names[] = {"clock", "thread", "give_up", "grad_enabled", "optimizer_made", NULL};
    PyObject *clock, *give_up, *grad_enabled, *optimizer_made;
    unsigned long thread;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O!kOOO", names, &BoundariesType, &clock, &thread, &give_up,
                                     &grad_enabled, &optimizer_made))
        return -1;
    if (self->clock != NULL || intern_names() < 0) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_ValueError, "made once");
        return -1;
    }
    self->training_sources = PySet_New(NULL);
    self->asked = PyDict_New();
    if (self->training_sources == NULL || self->asked == NULL)
        return -1;
    self->give_up = Py_NewRef(give_up);
    self->grad_enabled = Py_NewRef(grad_enabled);
    self->optimizer_made = Py_NewRef(optimizer_made);
    self->thread = thread;
    self->clock = (Boundaries *)Py_NewRef(clock);
    return 0;
}

static int loop_traverse(HotLoop *self, visitproc visit, void *arg)
{
    Py_VISIT(self->clock);
    Py_VISIT(self->give_up);
    Py_VISIT(self->grad_enabled);
    Py_VISIT(self->optimizer_made);
    Py_VISIT(self->training_sources);
    Py_VISIT(self->asked);
    Py_VISIT(self->quiet_iterator);
    return 0;
}

static int loop_clear(HotLoop *self)
{
    Py_CLEAR(self->clock);
    Py_CLEAR(self->give_up);
    Py_CLEAR(self->grad_enabled);
    Py_CLEAR(self->optimizer_made);
    Py_CLEAR(self->training_sources);
    Py_CLEAR(self->asked);
    Py_CLEAR(self->quiet_iterator);
    return 0;
}

static void loop_dealloc(HotLoop *self)
{
    PyObject_GC_UnTrack(self);
    loop_clear(self);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

/* Containers that are read here unchecked are only ever replaced by their like. */
static int set_container(PyObject **place, PyObject *value, PyTypeObject *type)
{
    if (value == NULL || !PyObject_TypeCheck(value, type)) {
        PyErr_Format(PyExc_TypeError, "a %s is expected", type->tp_name);
        return -1;
    }
    Py_XSETREF(*place, Py_NewRef(value));
    return 0;
}

static PyObject *get_sources(HotLoop *self, void *Py_UNUSED(closure))
{
    return Py_XNewRef(self->training_sources);
}

static int set_sources(HotLoop *self, PyObject *value, void *Py_UNUSED(closure))
{
    self->trained_on = 0;
    return set_container(&self->training_sources, value, &PySet_Type);
}

static PyObject *get_asked(HotLoop *self, void *Py_UNUSED(closure))
{
    return count_turns(self) < 0 ? NULL : Py_XNewRef(self->asked);
}

static int set_asked(HotLoop *self, PyObject *value, void *Py_UNUSED(closure))
{
    self->turns = 0;
    return set_container(&self->asked, value, &PyDict_Type);
}

static PyObject *get_last_asked(HotLoop *self, void *Py_UNUSED(closure))
{
    return PyLong_FromUnsignedLongLong(self->last_asked);
}

static int set_last_asked(HotLoop *self, PyObject *value, void *Py_UNUSED(closure))
{
    unsigned long long source = value == NULL ? 0 : PyLong_AsUnsignedLongLong(value);
    if (value == NULL)
        PyErr_SetString(PyExc_TypeError, "an identity is expected");
    if (PyErr_Occurred() || count_turns(self) < 0)
        return -1;
    self->last_asked = source;
    self->trained_on = 0;
    return 0;
}

static PyGetSetDef computed[] = {
    {"training_sources", (getter)get_sources, (setter)set_sources, NULL, NULL},
    {"asked", (getter)get_asked, (setter)set_asked, NULL, NULL},
    {"last_asked", (getter)get_last_asked, (setter)set_last_asked, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

#define FLAG(name) {#name, T_BOOL, offsetof(HotLoop, name), 0, NULL}
static PyMemberDef members[] = {
    FLAG(explicit),
    FLAG(stamps),
    FLAG(rule_settled),
    FLAG(loader_seen),
    FLAG(stepped),
    FLAG(updated_in_backward),
    FLAG(optimizer_seen),
    FLAG(closure),
    {"clock", T_OBJECT_EX, offsetof(HotLoop, clock), READONLY, NULL},
    {"give_up", T_OBJECT_EX, offsetof(HotLoop, give_up), READONLY, NULL},
    {"thread", T_ULONG, offsetof(HotLoop, thread), READONLY, NULL},
    {"usual_backwards", T_LONGLONG, offsetof(HotLoop, usual_backwards), 0, NULL},
    {"optimizer_depth", T_LONGLONG, offsetof(HotLoop, optimizer_depth), 0, NULL},
    {"quiet_iterator", T_OBJECT, offsetof(HotLoop, quiet_iterator), 0, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyMethodDef methods[] = {
    {"data_begin", (PyCFunction)loop_data_begin, METH_O, NULL},
    {"data_end", (PyCFunction)loop_data_end, METH_O, NULL},
    {"backward_begin", (PyCFunction)loop_backward_begin, METH_NOARGS, NULL},
    {"backward_own_end", (PyCFunction)loop_backward_own_end, METH_NOARGS, NULL},
    {"backward_end", (PyCFunction)loop_backward_end, METH_NOARGS, NULL},
    {"optimizer_begin", (PyCFunction)(void (*)(void))loop_optimizer_begin, METH_FASTCALL, NULL},
    {"optimizer_end", (PyCFunction)loop_optimizer_end, METH_O, NULL},
    {"end_step", (PyCFunction)hot_loop_end_step, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

PyTypeObject HotLoopType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "rankscope.torch_hooks._native.HotLoop",
    .tp_basicsize = sizeof(HotLoop),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .tp_new = PyType_GenericNew,
    .tp_init = (initproc)loop_init,
    .tp_dealloc = (destructor)loop_dealloc,
    .tp_traverse = (traverseproc)loop_traverse,
    .tp_clear = (inquiry)loop_clear,
    .tp_methods = methods,
    .tp_members = members,
    .tp_getset = computed,
};
