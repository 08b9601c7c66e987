/* The training thread's end of the ring, for compiled writers: what RingWriter does.

   The file is mapped and read by another process: a slot's checksum is stored last, with release order, and a reader
   believes nothing that it does not cover. */

#include "native.h"
#include <string.h>

int ring_open(Ring *ring, PyObject *writer)
{
    PyObject *mapped = PyObject_GetAttrString(writer, "mapped");
    PyObject *counter = mapped == NULL ? NULL : PyObject_GetAttrString(writer, "counter");
    PyObject *slots = counter == NULL ? NULL : PyObject_GetAttrString(writer, "slots");
    Ring opened = {0};
    int made = slots != NULL && !failed(opened.slots = PyLong_AsLongLong(slots)) &&
               PyObject_GetBuffer(mapped, &opened.mapped, PyBUF_WRITABLE) == 0 &&
               PyObject_GetBuffer(counter, &opened.counter, PyBUF_WRITABLE) == 0;
    Py_XDECREF(mapped);
    Py_XDECREF(counter);
    Py_XDECREF(slots);
    if (made) {
        const Py_buffer *file = &opened.mapped, *position = &opened.counter;
        made = opened.slots >= 1 && opened.slots <= (file->len - HEADER_BYTES) / SLOT_BYTES &&
               (uintptr_t)file->buf % 8 == 0 && position->len == sizeof(int64_t) &&
               (uintptr_t)position->buf % 8 == 0 && *(int64_t *)position->buf >= 1;
        if (!made)
            PyErr_SetString(PyExc_ValueError, "not a ring of that many slots");
    }
    if (!made) {
        ring_close(&opened);
        return -1;
    }
    *ring = opened;
    return 0;
}

void ring_close(Ring *ring)
{
    PyBuffer_Release(&ring->mapped);
    PyBuffer_Release(&ring->counter);
}

void ring_append(Ring *ring, uint16_t kind, const void *fields, uint16_t size)
{
    int64_t *counter = ring->counter.buf;
    const int64_t sequence = *counter;
    const uint16_t head[2] = {kind, size};
    unsigned char *slot = (unsigned char *)ring->mapped.buf + HEADER_BYTES + (sequence - 1) % ring->slots * SLOT_BYTES;
    unsigned char body[SLOT_BYTES];
    memcpy(body, head, 4);
    memcpy(body + 4, &sequence, 8);
    memcpy(body + PREFIX_BYTES, fields, size);
    memcpy(slot + 4, body, PREFIX_BYTES + size);
    __atomic_store_n((uint32_t *)slot, crc32_of(body, PREFIX_BYTES + size), __ATOMIC_RELEASE);
    *counter = sequence + 1;
}
