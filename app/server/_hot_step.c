/* The hot step in C: the functions of hot_step.py, which says what they are for. It knows no policy and no meaning: it
 * compares bytes, calls bpf(2), and fills in numbers. The tests hold it against hot_step.py, byte for byte. */
#define PY_SSIZE_T_CLEAN
#define _GNU_SOURCE
#include <Python.h>
#include <structmember.h>

#include "../bpf/bpf_element.h"

typedef struct {
    PyObject_HEAD
    PyObject *connection, *meaning, *body, *data, *request_id;
    double began;
    uint32_t index, before, after;
    char keep_alive, is_counted, is_written;
} FastRequest;

static int request_init(FastRequest *self, PyObject *args, PyObject *keywords)
{
    PyObject *connection, *meaning, *body, *data;

    if (!PyArg_ParseTuple(args, "OOIOO", &connection, &meaning, &self->index, &body, &data))
        return -1;
    Py_XSETREF(self->connection, Py_NewRef(connection)); Py_XSETREF(self->meaning, Py_NewRef(meaning));
    Py_XSETREF(self->body, Py_NewRef(body)); Py_XSETREF(self->data, Py_NewRef(data));
    Py_XSETREF(self->request_id, Py_NewRef(Py_None));
    self->began = now(), self->keep_alive = 1;
    return 0;
}

static void request_dealloc(FastRequest *self)
{
    Py_XDECREF(self->connection), Py_XDECREF(self->meaning), Py_XDECREF(self->body), Py_XDECREF(self->data);
    Py_XDECREF(self->request_id);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

#define MEMBER(name, type) {#name, type, offsetof(FastRequest, name), 0, NULL}
static PyMemberDef request_members[] = {
    MEMBER(connection, T_OBJECT_EX), MEMBER(meaning, T_OBJECT_EX), MEMBER(body, T_OBJECT_EX), MEMBER(data, T_OBJECT_EX),
    MEMBER(request_id, T_OBJECT_EX), MEMBER(began, T_DOUBLE), MEMBER(index, T_UINT), MEMBER(before, T_UINT),
    MEMBER(after, T_UINT), MEMBER(keep_alive, T_BOOL), MEMBER(is_counted, T_BOOL), MEMBER(is_written, T_BOOL), {NULL},
};
static PyTypeObject request_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "app.server._hot_step.FastRequest",
    .tp_basicsize = sizeof(FastRequest), .tp_flags = Py_TPFLAGS_DEFAULT, .tp_members = request_members,
    .tp_new = PyType_GenericNew, .tp_init = (initproc)request_init, .tp_dealloc = (destructor)request_dealloc,
};

/* Returns a request of a list. NULL with an exception set: it is something else. */
static FastRequest *request_of(PyObject *list, Py_ssize_t place)
{
    PyObject *item = PyList_GET_ITEM(list, place);

    if (!Py_IS_TYPE(item, &request_type))
        return PyErr_SetString(PyExc_TypeError, "takes FastRequests of this module"), NULL;
    return (FastRequest *)item;
}

static PyObject *split_head(PyObject *module, PyObject *data)
{
    char *start, *digit, *version, *head_end, *line_end;
    Py_ssize_t size;
    unsigned long long index = 0;

    if (PyBytes_AsStringAndSize(data, &start, &size) < 0)
        return NULL;
    head_end = memmem(start, size, "\r\n\r\n", 4);
    line_end = head_end ? memmem(start, head_end - start, "\r\n", 2) : NULL;
    if (line_end == NULL || line_end - start < 10 || memcmp(line_end - 9, " HTTP/1.1", 9))
        Py_RETURN_NONE;
    version = digit = line_end - 9;
    while (digit > start && digit[-1] >= '0' && digit[-1] <= '9')
        digit--;
    if (digit == version || version - digit > 10 || (*digit == '0' && version - digit > 1) || digit - start < 9
        || memcmp(digit - 9, "/entries/", 9))
        Py_RETURN_NONE;
    for (char *each = digit; each < version; each++)
        index = index * 10 + (unsigned)(*each - '0');
    if (index > UINT32_MAX)
        Py_RETURN_NONE;
    return Py_BuildValue("y#Ky#y#", start, digit - 9 - start, index, line_end + 2, head_end - line_end - 2,
                         head_end + 4, start + size - head_end - 4);
}

static PyObject *go_through(PyObject *module, PyObject *args)
{
    PyObject *list, *kernel, *targets, *target, *keep_open, *kept;
    Times lookups = {0}, updates = {0};
    uint32_t max_entries, before, after, program_fd;
    FastRequest *request;
    int fd;

    if (!PyArg_ParseTuple(args, "O!OiIOO", &PyList_Type, &list, &kernel, &fd, &max_entries, &targets, &keep_open))
        return NULL;
    for (Py_ssize_t place = 0; place < PyList_GET_SIZE(list); place++) {
        if ((request = request_of(list, place)) == NULL)
            return NULL;
        target = targets == Py_None ? NULL : PyDict_GetItemWithError(targets, request->body);
        if ((target == NULL && targets != Py_None) || request->index >= max_entries)
            continue;
        before = 0;
        if (timed_bpf_element(&lookups, BPF_MAP_LOOKUP_ELEM, fd, request->index, &before) < 0 && errno != ENOENT)
            continue;
        after = before;
        if (target && !PyArg_ParseTuple(target, "II", &after, &program_fd))
            return NULL;
        kept = before && after != before ? PyObject_CallFunction(keep_open, "I", before) : Py_NewRef(Py_None);
        if (kept == NULL)
            return NULL;
        Py_DECREF(kept);
        request->before = before;
        if (after != before && timed_bpf_element(&updates, BPF_MAP_UPDATE_ELEM, fd, request->index, &program_fd) < 0)
            continue;
        request->is_written = after != before;
        request->after = after;
    }
    return Py_BuildValue("(kdd)(kdd)", lookups.count, lookups.total, lookups.longest, updates.count, updates.total,
                         updates.longest);
}

/* A text that is being made. */
typedef struct {
    size_t length;
    char bytes[8192];
} Text;

static void put(Text *text, const char *bytes, size_t size)
{
    if (text->length + size <= sizeof text->bytes)
        memcpy(text->bytes + text->length, bytes, size);
    text->length += size;
}

static void put_bytes(Text *text, PyObject *bytes)
{
    if (bytes && PyBytes_Check(bytes))
        put(text, PyBytes_AS_STRING(bytes), PyBytes_GET_SIZE(bytes));
    else
        PyErr_SetString(PyExc_TypeError, "a part of a text is not bytes");
}

#define put_part(text, tuple, place) put_bytes(text, PyTuple_GET_ITEM(tuple, place))

static void put_number(Text *text, unsigned long long number, unsigned base)
{
    char digits[24], *digit = digits + sizeof digits;

    do
        *--digit = "0123456789abcdef"[number % base];
    while (number /= base);
    put(text, digit, digits + sizeof digits - digit);
}

/* Appends a text to a list, unless an exception is set. */
static void append(PyObject *list, Text *text)
{
    PyObject *bytes = NULL;

    if (text->length > sizeof text->bytes)
        PyErr_SetString(PyExc_ValueError, "the text is too long");
    else if (!PyErr_Occurred())
        bytes = PyBytes_FromStringAndSize(text->bytes, text->length);
    if (bytes)
        PyList_Append(list, bytes);
    Py_XDECREF(bytes);
}

/* Makes an answer of `text`, an AnswerText. */
static void make_answer(Text *answer, FastRequest *request, PyObject *text, unsigned long long change, const char *id)
{
    size_t digits = 1, size = PyLong_AsSize_t(PyTuple_GET_ITEM(text, 7));

    for (uint32_t left = request->index; left >= 10; left /= 10)
        digits++;
    answer->length = 0;
    put_part(answer, text, request->is_written && !request->before); /* ok, created */
    size -= answer->length;
    put_number(answer, request->index, 16);
    size += answer->length + digits;
    put_part(answer, text, 2); /* tag_end */
    if (request->is_written)
        put(answer, "change-id: ", 11), put_number(answer, change, 10), put(answer, "\r\n", 2);
    put(answer, "content-length: ", 16), put_number(answer, size, 10), put(answer, "\r\n", 2);
    put_part(answer, text, 3), put(answer, id, strlen(id));            /* middle */
    put_part(answer, text, 4), put_number(answer, request->index, 10); /* before_index */
    put_part(answer, text, 5), put_number(answer, request->index, 16); /* before_tag */
    put_part(answer, text, 6);                                         /* end */
}

/* Makes the line of the audit that tells of a set. `audit`: a tuple, see Meaning. `facts`: of the two programs. */
static void make_line(Text *line, FastRequest *request, PyObject *audit, unsigned long long change, const char *id,
                      PyObject *before, PyObject *after)
{
    line->length = 0;
    put(line, "\"request_id\":\"", 14), put(line, id, strlen(id)), put_part(line, audit, 0);
    put(line, request->is_written && !request->before ? "201" : "200", 3);
    put_part(line, audit, 1), put_number(line, request->index, 10), put(line, "\"", 1);
    if (request->is_written) {
        put(line, ",\"change\":", 10), put_number(line, change, 10);
        put_part(line, audit, 2), put_number(line, request->index, 10);
        put(line, ",\"before\":", 10), put_bytes(line, before), put(line, ",\"after\":", 9), put_bytes(line, after);
    }
}

static PyObject *answers(PyObject *module, PyObject *args)
{
    PyObject *list, *texts, *facts, *made = PyList_New(0), *lines = PyList_New(0);
    unsigned long long change;
    FastRequest *request;
    Text text;

    if (made && lines && PyArg_ParseTuple(args, "O!KO!O!", &PyList_Type, &list, &change, &PyDict_Type, &texts,
                                          &PyDict_Type, &facts))
        for (Py_ssize_t i = 0; !PyErr_Occurred() && i < PyList_GET_SIZE(list) && (request = request_of(list, i)); i++) {
            PyObject *after = PyLong_FromUnsignedLong(request->after), *before = PyLong_FromUnsignedLong(request->before);
            PyObject *parts = PyDict_GetItemWithError(texts, after), *audit = PyObject_GetAttrString(request->meaning, "audit");
            PyObject *was = PyDict_GetItemWithError(facts, before), *is = PyDict_GetItemWithError(facts, after);
            const char *id = PyUnicode_AsUTF8(request->request_id);
            int has_audit = audit && PyTuple_Check(audit) && PyTuple_GET_SIZE(audit) == 3;
            if (parts && PyTuple_Check(parts) && PyTuple_GET_SIZE(parts) == 8 && id && (has_audit || audit == Py_None))
                make_answer(&text, request, parts, change, id), append(made, &text);
            else if (!PyErr_Occurred())
                PyErr_SetString(PyExc_TypeError, "there is no AnswerText for a request");
            if (has_audit && !PyErr_Occurred())
                make_line(&text, request, audit, change, id, was, is), append(lines, &text);
            change += request->is_written;
            Py_XDECREF(audit), Py_DECREF(after), Py_DECREF(before);
        }
    if (!PyErr_Occurred())
        return Py_BuildValue("NN", made, lines);
    return Py_XDECREF(made), Py_XDECREF(lines), NULL;
}

static PyMethodDef methods[] = {
    {"split_head", split_head, METH_O, NULL}, {"go_through", go_through, METH_VARARGS, NULL},
    {"answers", answers, METH_VARARGS, NULL}, {NULL},
};
static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, .m_name = "_hot_step", .m_size = -1, .m_methods = methods};

PyMODINIT_FUNC PyInit__hot_step(void)
{
    PyObject *module = PyType_Ready(&request_type) < 0 ? NULL : PyModule_Create(&definition);

    if (module && PyModule_AddObjectRef(module, "FastRequest", (PyObject *)&request_type) == 0)
        return module;
    Py_XDECREF(module);
    return NULL;
}
