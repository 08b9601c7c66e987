/* Step phases on the device's clock: what device_timeline.py does. */

#include "native.h"
#include <string.h>

#define MAX_PENDING_STEPS 32
#define LEAD_BLOCK_STEPS 128
/* In place of a phase: boundaries were passed without an event; the compute stream waits for a collective in the
   middle of forward or backward. */
#define UNKNOWN (-1)
#define INNER_WAIT PHASES

typedef struct {
    long long ended, begun, host_ns;
    PyObject *event, *group; /* a GroupState, or None */
} Mark;

typedef struct {
    long long number, drained;
    Mark *marks;
    Py_ssize_t count, room;
    PyObject *used; /* tuple of GroupState */
} Step;

/* What a step's events come to. */
typedef struct {
    long long spent[PHASES + 1], leads[PHASES + 1], lead;
    char led[PHASES + 1], unknown;
} Sums;

typedef struct {
    PyObject_HEAD
    PyObject *clock, *last;
    Ring ring;
    long long world_size, phase, resumed, device_ns, nearest_ns, nearest_before_ns, block_steps, dropped_steps;
    Step open, pending[MAX_PENDING_STEPS + 1];
    int pending_count;
    char coarse, waiting, gap, has_nearest, has_nearest_before;
} DeviceTimeline;

static PyObject *name_ready, *name_record, *name_done, *name_elapsed_ns, *name_release;

static int is_asked(long long phase)
{
    return phase == FORWARD || phase == BACKWARD || phase == OPTIMIZER;
}

static int is_known(long long phase)
{
    return is_asked(phase) || phase == DATA_WAIT || phase == H2D || phase == COLLECTIVE_WAIT || phase == INNER_WAIT ||
           phase == BUBBLE;
}

static void clear_step(Step *step)
{
    for (Py_ssize_t at = 0; at < step->count; at++) {
        Py_DECREF(step->marks[at].event);
        Py_DECREF(step->marks[at].group);
    }
    step->count = 0;
    Py_CLEAR(step->used);
}

static int truth(PyObject *answer)
{
    int is = answer == NULL ? -1 : PyObject_IsTrue(answer);
    Py_XDECREF(answer);
    return is;
}

static int is_done(DeviceTimeline *self, PyObject *event)
{
    return truth(PyObject_CallMethodOneArg(self->clock, name_done, event));
}

static int check_phase(long long phase)
{
    if (phase >= UNKNOWN && phase <= INNER_WAIT)
        return 0;
    PyErr_Format(PyExc_IndexError, "no phase %lld", phase);
    return -1;
}

/* The host passed from phase `ended` into `begun`: place an event there. */
static int mark(DeviceTimeline *self, long long ended, long long begun, long long host_ns, PyObject *group)
{
    if (check_phase(ended) < 0 || check_phase(begun) < 0)
        return -1;
    self->phase = begun;
    if (self->coarse && ended != OTHER && ended != NONE)
        return 0;
    int ready = truth(PyObject_CallMethodNoArgs(self->clock, name_ready));
    if (ready <= 0) {
        self->gap = 1;
        return ready;
    }
    Step *open = &self->open;
    if (is_asked(begun) && open->count > 0) {
        int drained = is_done(self, open->marks[open->count - 1].event);
        if (drained < 0)
            return -1;
        open->drained += drained;
    }
    if (open->count == open->room) {
        Py_ssize_t room = open->room == 0 ? 16 : 2 * open->room;
        Mark *marks = PyMem_Realloc(open->marks, (size_t)room * sizeof(Mark));
        if (marks == NULL) {
            PyErr_NoMemory();
            return -1;
        }
        open->marks = marks;
        open->room = room;
    }
    PyObject *event = PyObject_CallMethodNoArgs(self->clock, name_record);
    if (event == NULL)
        return -1;
    open->marks[open->count++] = (Mark){self->gap ? UNKNOWN : ended, begun, host_ns, event, Py_NewRef(group)};
    self->gap = 0;
    return 0;
}

/* How far the device ran behind the host: distance of the clocks above the nearest they ever came. */
static long long lead_of(DeviceTimeline *self, long long host_ns)
{
    long long distance = self->device_ns - host_ns;
    if (!self->has_nearest || distance < self->nearest_ns) {
        self->nearest_ns = distance;
        self->has_nearest = 1;
    }
    int before = self->has_nearest_before && self->nearest_before_ns < self->nearest_ns;
    return distance - (before ? self->nearest_before_ns : self->nearest_ns);
}

static void age_lead(DeviceTimeline *self)
{
    if (++self->block_steps < LEAD_BLOCK_STEPS)
        return;
    self->block_steps = 0;
    self->nearest_before_ns = self->nearest_ns;
    self->has_nearest_before = self->has_nearest;
    self->has_nearest = 0;
}

/* Add up the step's events, and give those before the last one back. -1 with an exception set. */
static int add_up(DeviceTimeline *self, const Step *step, Sums *sums, long long *passed)
{
    for (Py_ssize_t at = 0; at < step->count; at++) {
        const Mark *mark = &step->marks[at];
        passed[at] = MISSING;
        if (self->last != NULL) {
            PyObject *arguments[] = {self->clock, self->last, mark->event};
            PyObject *elapsed = PyObject_VectorcallMethod(name_elapsed_ns, arguments, 3, NULL);
            long long ns = elapsed == NULL ? -1 : PyLong_AsLongLong(elapsed);
            Py_XDECREF(elapsed);
            if (failed(ns))
                return -1;
            passed[at] = ns;
            self->device_ns += ns;
            if (mark->ended == UNKNOWN)
                sums->unknown = 1;
            else
                sums->spent[mark->ended] += ns;
            if (quiet_call(PyObject_CallMethodOneArg(self->clock, name_release, self->last)) < 0)
                return -1;
        }
        Py_XSETREF(self->last, Py_NewRef(mark->event));
        sums->lead = lead_of(self, mark->host_ns);
        if (mark->begun >= 0 && !sums->led[mark->begun]) {
            sums->led[mark->begun] = 1;
            sums->leads[mark->begun] = sums->lead;
        }
    }
    return 0;
}

/* Device time that the compute stream waited for a group in the middle of a phase (`waits`: whether it was seen to). */
static long long waited_for(const Step *step, const long long *passed, PyObject *group, int *waits)
{
    long long waited = 0;
    for (Py_ssize_t at = 0; at < step->count; at++) {
        const Mark *mark = &step->marks[at];
        if (mark->group == group && (mark->ended == INNER_WAIT || mark->ended == BUBBLE) && passed[at] != MISSING) {
            waited += passed[at];
            *waits = 1;
        }
    }
    return waited;
}

/* Whether operations of a used group were waited for somewhere in the "own" phases, unseen. */
static int is_unseen(const Step *step, const long long *passed, PyObject *group)
{
    int waits = 0;
    waited_for(step, passed, group, &waits);
    return !waits && ((GroupState *)group)->kind != PIPELINE;
}

static void append_device(DeviceTimeline *self, const Step *step, const Sums *sums, int unseen)
{
    const long long *spent = sums->spent, *leads = sums->leads;
    long long whole = 0, other = 0, asked = 0;
    for (int phase = 0; phase <= INNER_WAIT; phase++) {
        whole += spent[phase];
        other += is_known(phase) ? 0 : spent[phase];
    }
    for (Py_ssize_t at = 0; at < step->count; at++)
        asked += is_asked(step->marks[at].begun);
#define PART(value) (self->coarse ? MISSING : (value))
#define LEAD(phase) (sums->led[phase] ? leads[phase] : MISSING)
    /* The order is DeviceRecord's. */
    const int64_t fields[DEVICE_FIELDS] = {
        step->number, whole, PART(spent[DATA_WAIT]), PART(spent[FORWARD] + spent[H2D]), PART(spent[BACKWARD]),
        PART(spent[COLLECTIVE_WAIT]), PART(spent[OPTIMIZER]), PART(other), LEAD(FORWARD), LEAD(BACKWARD),
        LEAD(OPTIMIZER), sums->lead, PART(spent[H2D]), PART(spent[INNER_WAIT]), PART(spent[BUBBLE]),
        PART(spent[CHECKPOINT]), PART(spent[EVALUATION]), asked, step->drained, unseen,
    };
    ring_append(&self->ring, DEVICE_KIND, fields, sizeof fields);
}

static int contains(PyObject *used, PyObject *group)
{
    for (Py_ssize_t at = 0; at < PyTuple_GET_SIZE(used); at++)
        if (PyTuple_GET_ITEM(used, at) == group)
            return 1;
    return 0;
}

static void append_group(DeviceTimeline *self, const Step *step, const Sums *sums, const long long *passed,
                         PyObject *group, int is_default)
{
    int waits = 0, used = contains(step->used, group);
    long long waited = waited_for(step, passed, group, &waits), count = 0;
    for (Py_ssize_t at = 0; at < step->count; at++) {
        const Mark *mark = &step->marks[at];
        count += mark->group == group;
        count += is_default && mark->ended == BACKWARD && mark->begun != INNER_WAIT;
    }
    if (is_default)
        waited += sums->spent[COLLECTIVE_WAIT] + waited_for(step, passed, Py_None, &(int){0});
    if (count == 0 && !used)
        return;
    group_append(&self->ring, (GroupState *)group, step->number, count, sums->spent[FORWARD] + sums->spent[BACKWARD],
                 waited, 1, used && is_unseen(step, passed, group), MISSING, MISSING);
}

/* Write what a step's events say, now that the device has come to its end. */
static int write_sums(DeviceTimeline *self, const Step *step, PyObject *states, long long *passed)
{
    Sums sums = {.lead = MISSING};
    int whole = self->last != NULL, unseen = 0;
    if (add_up(self, step, &sums, passed) < 0)
        return -1;
    age_lead(self);
    /* The first step has no event at its begin, one with a graph capture not at every boundary. */
    if (!whole || sums.unknown)
        return 0;
    for (Py_ssize_t at = 0; at < PyTuple_GET_SIZE(step->used); at++)
        unseen |= is_unseen(step, passed, PyTuple_GET_ITEM(step->used, at));
    append_device(self, step, &sums, unseen);
    if (self->world_size < 2 || self->coarse || states == Py_None)
        return 0;
    GroupState *first = group_at(states, 0);
    if (first == NULL)
        return -1;
    append_group(self, step, &sums, passed, (PyObject *)first, 1);
    for (Py_ssize_t at = 0; at < PyTuple_GET_SIZE(step->used); at++)
        if (PyTuple_GET_ITEM(step->used, at) != (PyObject *)first)
            append_group(self, step, &sums, passed, PyTuple_GET_ITEM(step->used, at), 0);
    Py_DECREF(first);
    return 0;
}

static int write_step(DeviceTimeline *self, const Step *step, PyObject *states)
{
    long long few[32], *passed = step->count <= 32 ? few : PyMem_Malloc((size_t)step->count * sizeof(long long));
    if (passed == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    int result = write_sums(self, step, states, passed);
    if (passed != few)
        PyMem_Free(passed);
    return result;
}

/* The oldest step under way leaves the queue; what it held is the caller's. */
static Step take_oldest(DeviceTimeline *self)
{
    Step oldest = self->pending[0];
    memmove(self->pending, self->pending + 1, (size_t)--self->pending_count * sizeof(Step));
    return oldest;
}

static void free_step(Step *step)
{
    clear_step(step);
    PyMem_Free(step->marks);
    step->marks = NULL;
    step->room = 0;
}

/* Write the steps that the device has come to the end of. */
static int flush(DeviceTimeline *self, PyObject *states)
{
    while (self->pending_count > 0) {
        const Step *oldest = &self->pending[0];
        int done = is_done(self, oldest->marks[oldest->count - 1].event);
        if (done <= 0)
            return done;
        Step step = take_oldest(self);
        int result = write_step(self, &step, states);
        clear_step(&step);
        /* Its room serves the next step. */
        if (self->open.marks == NULL) {
            self->open.marks = step.marks;
            self->open.room = step.room;
        } else
            PyMem_Free(step.marks);
        if (result < 0)
            return -1;
    }
    return 0;
}

/* Groups with operations issued in the step under way. */
static PyObject *used_groups(PyObject *states)
{
    PyObject *used = PyList_New(0);
    Py_ssize_t count = states == Py_None ? 0 : PyList_Check(states) ? PyList_GET_SIZE(states) : 1;
    for (Py_ssize_t at = 0; used != NULL && at < count; at++) {
        GroupState *state = group_at(states, at);
        if (state == NULL || (state->count && PyList_Append(used, (PyObject *)state) < 0))
            Py_CLEAR(used);
        Py_XDECREF(state);
    }
    PyObject *held = used == NULL ? NULL : PyList_AsTuple(used);
    Py_XDECREF(used);
    return held;
}

static int end_of_step(DeviceTimeline *self, long long number, PyObject *states)
{
    Step *open = &self->open;
    if (open->count > 0) {
        open->used = used_groups(states);
        if (open->used == NULL)
            return -1;
        if (self->pending_count > MAX_PENDING_STEPS) {
            /* An error kept the last call from making room. */
            Step lost = take_oldest(self);
            free_step(&lost);
        }
        open->number = number;
        self->pending[self->pending_count++] = *open;
        memset(open, 0, sizeof *open);
    }
    open->drained = 0;
    if (flush(self, states) < 0)
        return -1;
    if (self->pending_count > MAX_PENDING_STEPS) {
        Step lost = take_oldest(self);
        free_step(&lost);
        self->dropped_steps++;
        Py_CLEAR(self->last);
    }
    return 0;
}

static int begin_wait(DeviceTimeline *self, long long phase, long long host_ns)
{
    long long under_way = self->phase;
    if (self->coarse || self->waiting || under_way == COLLECTIVE_WAIT || under_way == CHECKPOINT ||
        under_way == EVALUATION)
        return 0;
    if (mark(self, under_way, phase == COLLECTIVE_WAIT ? INNER_WAIT : phase, host_ns, Py_None) < 0)
        return -1;
    self->waiting = 1;
    self->resumed = under_way;
    return 0;
}

static int end_wait(DeviceTimeline *self, PyObject *group, long long host_ns)
{
    if (!self->waiting)
        return 0;
    self->waiting = 0;
    return mark(self, self->phase, self->resumed, host_ns, group);
}

static int is_ours(PyObject *timeline)
{
    return PyObject_TypeCheck(timeline, &DeviceTimelineType) && ((DeviceTimeline *)timeline)->clock != NULL;
}

int timeline_mark(PyObject *timeline, long long ended, long long begun, long long host_ns, PyObject *group)
{
    if (is_ours(timeline))
        return mark((DeviceTimeline *)timeline, ended, begun, host_ns, group);
    return quiet_call(PyObject_CallMethod(timeline, "mark", "LLLO", ended, begun, host_ns, group));
}

int timeline_end_step(PyObject *timeline, long long step, PyObject *states)
{
    if (is_ours(timeline))
        return end_of_step((DeviceTimeline *)timeline, step, states);
    return quiet_call(PyObject_CallMethod(timeline, "end_step", "LO", step, states));
}

int timeline_wait_begins(PyObject *timeline, long long phase, long long host_ns)
{
    if (is_ours(timeline))
        return begin_wait((DeviceTimeline *)timeline, phase, host_ns);
    return quiet_call(PyObject_CallMethod(timeline, "wait_begins", "LL", phase, host_ns));
}

int timeline_wait_ends(PyObject *timeline, PyObject *group, long long host_ns)
{
    if (is_ours(timeline))
        return end_wait((DeviceTimeline *)timeline, group, host_ns);
    return quiet_call(PyObject_CallMethod(timeline, "wait_ends", "OL", group, host_ns));
}

static int is_made(DeviceTimeline *self)
{
    if (self->clock != NULL)
        return 1;
    PyErr_SetString(PyExc_ValueError, "no clock: __init__ was not called");
    return 0;
}

static int is_group(PyObject *group)
{
    if (group == Py_None || PyObject_TypeCheck(group, &GroupStateType))
        return 1;
    PyErr_SetString(PyExc_TypeError, "a group is a GroupState");
    return 0;
}

static PyObject *answer(int result)
{
    return result < 0 ? NULL : Py_NewRef(Py_None);
}

static PyObject *timeline_py_mark(DeviceTimeline *self, PyObject *arguments)
{
    long long ended, begun, host_ns;
    PyObject *group = Py_None;
    if (!PyArg_ParseTuple(arguments, "LLL|O", &ended, &begun, &host_ns, &group) || !is_made(self) || !is_group(group))
        return NULL;
    return answer(mark(self, ended, begun, host_ns, group));
}

static PyObject *timeline_py_wait_begins(DeviceTimeline *self, PyObject *arguments)
{
    long long phase, host_ns;
    if (!PyArg_ParseTuple(arguments, "LL", &phase, &host_ns) || !is_made(self))
        return NULL;
    return answer(begin_wait(self, phase, host_ns));
}

static PyObject *timeline_py_wait_ends(DeviceTimeline *self, PyObject *arguments)
{
    PyObject *group;
    long long host_ns;
    if (!PyArg_ParseTuple(arguments, "OL", &group, &host_ns) || !is_made(self) || !is_group(group))
        return NULL;
    return answer(end_wait(self, group, host_ns));
}

static PyObject *timeline_py_end_step(DeviceTimeline *self, PyObject *arguments)
{
    long long step;
    PyObject *states;
    if (!PyArg_ParseTuple(arguments, "LO", &step, &states) || !is_made(self))
        return NULL;
    return answer(end_of_step(self, step, states));
}

static PyObject *timeline_flush(DeviceTimeline *self, PyObject *states)
{
    return is_made(self) ? answer(flush(self, states)) : NULL;
}

static int intern_names(void)
{
    const Name names[] = {
        {&name_ready, "ready"},           {&name_record, "record"},   {&name_done, "done"},
        {&name_elapsed_ns, "elapsed_ns"}, {&name_release, "release"},
    };
    return intern_all(names, sizeof names / sizeof *names);
}

static int timeline_init(DeviceTimeline *self, PyObject *arguments, PyObject *keywords)
{
    static char *names[] = {"clock", "ring", "world_size", "coarse", NULL};
    PyObject *clock, *ring;
    int coarse = 0;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "OOL|$p", names, &clock, &ring, &self->world_size, &coarse))
        return -1;
    if (self->clock != NULL) {
        PyErr_SetString(PyExc_ValueError, "made once");
        return -1;
    }
    if (intern_names() < 0 || ring_open(&self->ring, ring) < 0)
        return -1;
    self->coarse = (char)coarse;
    self->clock = Py_NewRef(clock);
    return 0;
}

static int visit_step(const Step *step, visitproc visit, void *arg)
{
    for (Py_ssize_t at = 0; at < step->count; at++) {
        Py_VISIT(step->marks[at].event);
        Py_VISIT(step->marks[at].group);
    }
    Py_VISIT(step->used);
    return 0;
}

static int timeline_traverse(DeviceTimeline *self, visitproc visit, void *arg)
{
    Py_VISIT(self->clock);
    Py_VISIT(self->last);
    Py_VISIT(self->ring.mapped.obj);
    Py_VISIT(self->ring.counter.obj);
    int result = visit_step(&self->open, visit, arg);
    for (int at = 0; result == 0 && at < self->pending_count; at++)
        result = visit_step(&self->pending[at], visit, arg);
    return result;
}

static int timeline_clear(DeviceTimeline *self)
{
    while (self->pending_count > 0) {
        Step step = take_oldest(self);
        free_step(&step);
    }
    free_step(&self->open);
    Py_CLEAR(self->last);
    Py_CLEAR(self->clock);
    return 0;
}

static void timeline_dealloc(DeviceTimeline *self)
{
    PyObject_GC_UnTrack(self);
    timeline_clear(self);
    ring_close(&self->ring);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyMemberDef members[] = {
    {"dropped_steps", T_LONGLONG, offsetof(DeviceTimeline, dropped_steps), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyMethodDef methods[] = {
    {"mark", (PyCFunction)timeline_py_mark, METH_VARARGS, NULL},
    {"wait_begins", (PyCFunction)timeline_py_wait_begins, METH_VARARGS, NULL},
    {"wait_ends", (PyCFunction)timeline_py_wait_ends, METH_VARARGS, NULL},
    {"end_step", (PyCFunction)timeline_py_end_step, METH_VARARGS, NULL},
    {"flush", (PyCFunction)timeline_flush, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

PyTypeObject DeviceTimelineType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "rankscope.torch_hooks._native.DeviceTimeline",
    .tp_basicsize = sizeof(DeviceTimeline),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .tp_new = PyType_GenericNew,
    .tp_init = (initproc)timeline_init,
    .tp_dealloc = (destructor)timeline_dealloc,
    .tp_traverse = (traverseproc)timeline_traverse,
    .tp_clear = (inquiry)timeline_clear,
    .tp_methods = methods,
    .tp_members = members,
};
