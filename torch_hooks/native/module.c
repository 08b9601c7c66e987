/* The module: types, and the layouts of the records that it writes, by which a stale build is known. */

#include "native.h"

int intern_all(const Name *names, size_t count)
{
    for (size_t at = 0; at < count; at++)
        if (*names[at].at == NULL && (*names[at].at = PyUnicode_InternFromString(names[at].text)) == NULL)
            return -1;
    return 0;
}

int settle(int result, PyObject *give_up)
{
    if (result >= 0)
        return 0;
    if (!PyErr_ExceptionMatches(PyExc_Exception))
        return -1;
    PyObject *kind, *error, *trace;
    PyErr_Fetch(&kind, &error, &trace);
    PyErr_NormalizeException(&kind, &error, &trace);
    if (trace != NULL)
        PyException_SetTraceback(error, trace);
    result = quiet_call(PyObject_CallOneArg(give_up, error));
    Py_XDECREF(kind);
    Py_XDECREF(error);
    Py_XDECREF(trace);
    return result;
}

/* For tests: crc32(bytes, may_multiply). */
static PyObject *module_crc32(PyObject *Py_UNUSED(module), PyObject *arguments)
{
    const char *bytes;
    Py_ssize_t size;
    int may_multiply;
    if (!PyArg_ParseTuple(arguments, "y#p", &bytes, &size, &may_multiply))
        return NULL;
    prepare_crc(may_multiply);
    uint32_t crc = crc32_of((const unsigned char *)bytes, (size_t)size);
    prepare_crc(1);
    return PyLong_FromUnsignedLong(crc);
}

static PyMethodDef functions[] = {{"crc32", module_crc32, METH_VARARGS, NULL}, {NULL, NULL, 0, NULL}};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, .m_name = "_native", .m_size = -1, .m_methods = functions};

PyMODINIT_FUNC PyInit__native(void)
{
    static const struct {
        const char *name;
        PyTypeObject *type;
    } types[] = {
        {"Boundaries", &BoundariesType}, {"DeviceTimeline", &DeviceTimelineType}, {"GroupState", &GroupStateType},
        {"HotLoop", &HotLoopType},       {"Listener", &ListenerType},             {"next_gate", &NextGateType},
        {"backward_gate", &BackwardGateType}, {"collate_gate", &CollateGateType},
        {"HotCollectives", &HotCollectivesType}, {"operation_gate", &OperationGateType}, {"wait_gate", &WaitGateType},
    };
    prepare_crc(1);
    PyObject *made = PyModule_Create(&module);
    PyObject *layouts = Py_BuildValue("(iii)", 8 * STEP_FIELDS, 8 * DEVICE_FIELDS, (int)sizeof(GroupFields));
    int result = made == NULL || layouts == NULL ? -1 : PyModule_AddObjectRef(made, "LAYOUTS", layouts);
    Py_XDECREF(layouts);
    for (size_t at = 0; result == 0 && at < sizeof types / sizeof *types; at++)
        result = PyType_Ready(types[at].type) < 0
                     ? -1
                     : PyModule_AddObjectRef(made, types[at].name, (PyObject *)types[at].type);
    if (result < 0)
        Py_CLEAR(made);
    return made;
}
