/* bpf(2) on one entry of a map, without the cost of ctypes. `linux.py` uses it where it was built. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "bpf_element.h"

/* Returns -1 with an exception set. */
static int as_u32(PyObject *number, uint32_t *result)
{
    unsigned long value = PyLong_AsUnsignedLong(number);

    if (PyErr_Occurred())
        return -1;
    if (value > UINT32_MAX) {
        PyErr_SetString(PyExc_OverflowError, "not a u32");
        return -1;
    }
    *result = (uint32_t)value;
    return 0;
}

static int check_count(Py_ssize_t given, Py_ssize_t wanted)
{
    if (given != wanted)
        PyErr_Format(PyExc_TypeError, "takes %zd arguments, not %zd", wanted, given);
    return given == wanted ? 0 : -1;
}

/* Raises OSError for the errno of a command. */
static PyObject *refused(const char *command)
{
    int number = errno;
    PyObject *text = PyUnicode_FromFormat("%s: %s", command, strerror(number));
    PyObject *error = text ? PyObject_CallFunction(PyExc_OSError, "iO", number, text) : NULL;

    if (error)
        PyErr_SetObject((PyObject *)Py_TYPE(error), error);
    Py_XDECREF(error), Py_XDECREF(text);
    return NULL;
}

PyDoc_STRVAR(lookup_doc, "lookup(fd, index) -> value\n\nRead a u32 (MAP_LOOKUP_ELEM). Holds the GIL.");
static PyObject *lookup(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    uint32_t fd, index, value = 0;

    if (check_count(count, 2) || as_u32(args[0], &fd) || as_u32(args[1], &index))
        return NULL;
    if (bpf_element(BPF_MAP_LOOKUP_ELEM, (int)fd, index, &value, 0) < 0)
        return refused("MAP_LOOKUP_ELEM");
    return PyLong_FromUnsignedLong(value);
}

PyDoc_STRVAR(update_doc, "update(fd, index, value, flags)\n\nWrite a u32 (MAP_UPDATE_ELEM). Holds the GIL.");
static PyObject *update(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    uint32_t fd, index, value;
    uint64_t flags;

    if (check_count(count, 4) || as_u32(args[0], &fd) || as_u32(args[1], &index) || as_u32(args[2], &value))
        return NULL;
    flags = PyLong_AsUnsignedLongLong(args[3]);
    if (PyErr_Occurred())
        return NULL;
    if (bpf_element(BPF_MAP_UPDATE_ELEM, (int)fd, index, &value, flags) < 0)
        return refused("MAP_UPDATE_ELEM");
    Py_RETURN_NONE;
}

PyDoc_STRVAR(delete_doc, "delete(fd, index)\n\nClear an entry (MAP_DELETE_ELEM). Releases the GIL: it may wait.");
static PyObject *delete(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    uint32_t fd, index;
    long result;
    int number;

    if (check_count(count, 2) || as_u32(args[0], &fd) || as_u32(args[1], &index))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    result = bpf_element(BPF_MAP_DELETE_ELEM, (int)fd, index, NULL, 0);
    number = errno;
    Py_END_ALLOW_THREADS
    errno = number;
    if (result < 0)
        return refused("MAP_DELETE_ELEM");
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"lookup", (PyCFunction)(void (*)(void))lookup, METH_FASTCALL, lookup_doc},
    {"update", (PyCFunction)(void (*)(void))update, METH_FASTCALL, update_doc},
    {"delete", (PyCFunction)(void (*)(void))delete, METH_FASTCALL, delete_doc},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_element", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__element(void)
{
    return PyModule_Create(&definition);
}
