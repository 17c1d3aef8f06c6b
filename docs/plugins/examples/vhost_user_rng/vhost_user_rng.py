#!/usr/bin/env python3
"""A virtio entropy source as a vhost-user back end: a device of gvmm, or of any VMM, that is written in Python.

    vhost_user_rng.py rng.sock
    gvmm ... --device vhost-user,type=rng,socket=rng.sock

It shows how little the protocol asks of a back end. Numbers and layouts are those of the vhost-user protocol
(QEMU's docs/interop/vhost-user.rst) and of the split virtqueue (virtio 1.2, 2.7).
"""

import mmap
import os
import select
import socket
import struct
import sys
import threading

# Requests of the front end.
GET_FEATURES, SET_FEATURES, SET_OWNER = 1, 2, 3
SET_MEM_TABLE = 5
SET_VRING_NUM, SET_VRING_ADDR, SET_VRING_BASE, GET_VRING_BASE = 8, 9, 10, 11
SET_VRING_KICK, SET_VRING_CALL, SET_VRING_ERR = 12, 13, 14
GET_PROTOCOL_FEATURES, SET_PROTOCOL_FEATURES = 15, 16
SET_VRING_ENABLE = 18

HEADER = struct.Struct("<III")
VERSION, REPLY, NEED_REPLY = 1, 1 << 2, 1 << 3
MAX_PAYLOAD, MAX_DESCRIPTORS = 4096, 8
# In a message about a ring's event: no descriptor comes with it.
NO_EVENT = 1 << 8

# VIRTIO_F_VERSION_1, VHOST_USER_F_PROTOCOL_FEATURES; VHOST_USER_PROTOCOL_F_REPLY_ACK.
FEATURES = 1 << 32 | 1 << 30
PROTOCOL_FEATURES = 1 << 3

# Descriptors of a ring: VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_WRITE.
NEXT, WRITE = 1, 2
MAX_BYTES = 4096

FENCE = threading.Lock()


def fence():
    """Keeps what is written before it from being seen after what is written behind it."""
    for _ in range(2):
        with FENCE:
            pass


class Broken(Exception):
    """The other side, a driver or a front end, broke the rules."""


class Memory:
    """What the front end shares of the guest's memory."""

    def __init__(self, payload, files):
        self.regions = []
        (count,) = struct.unpack_from("<I", payload)
        for index, file in zip(range(count), files):
            guest, size, user, offset = struct.unpack_from("<QQQQ", payload, 8 + 32 * index)
            self.regions.append((guest, user, size, offset, mmap.mmap(file, offset + size)))

    def place(self, address, length, by_user_address=False):
        """The mapping and the offset in it of an address, which the driver may have made up."""
        for guest, user, size, offset, mapping in self.regions:
            start = user if by_user_address else guest
            if start <= address and address + length <= start + size:
                return mapping, offset + address - start
        raise Broken(f"no memory at {address:#x}+{length:#x}")


class Ring:
    """The one queue."""

    def __init__(self):
        self.size = self.base = 0
        self.table = self.available = self.used = None
        self.kick = self.call = None

    def place(self, memory, table, used, available):
        self.table = memory.place(table, 16 * self.size, True)
        self.used = memory.place(used, 4 + 8 * self.size, True)
        self.available = memory.place(available, 4 + 2 * self.size, True)

    def descriptors(self, head):
        """A chain: address, length and flags of each descriptor."""
        mapping, start = self.table
        for _ in range(self.size):
            if head >= self.size:
                raise Broken(f"no descriptor {head}")
            address, length, flags, following = struct.unpack_from("<QIHH", mapping, start + 16 * head)
            yield address, length, flags
            if not flags & NEXT:
                return
            head = following
        raise Broken("a chain without an end")

    def serve(self, memory):
        """Fills all requests that there are."""
        mapping, start = self.available
        done = False
        while struct.unpack_from("<H", mapping, start + 2)[0] != self.base:
            fence()
            (head,) = struct.unpack_from("<H", mapping, start + 4 + 2 * (self.base % self.size))
            self.complete(head, self.fill(memory, head))
            done = True
        if done and self.call is not None:
            os.write(self.call, struct.pack("<Q", 1))

    def fill(self, memory, head):
        filled = 0
        for address, length, flags in self.descriptors(head):
            length = min(length, MAX_BYTES - filled)
            if flags & WRITE and length:
                mapping, offset = memory.place(address, length)
                mapping[offset : offset + length] = os.urandom(length)
                filled += length
        return filled

    def complete(self, head, length):
        mapping, start = self.used
        struct.pack_into("<II", mapping, start + 4 + 8 * (self.base % self.size), head, length)
        self.base = (self.base + 1) % (1 << 16)
        fence()
        struct.pack_into("<H", mapping, start + 2, self.base)


class Session:
    """A connected front end."""

    def __init__(self, connection):
        self.connection = connection
        self.memory = None
        self.ring = Ring()

    def run(self):
        """Serves the front end until it leaves."""
        while True:
            sources = [self.connection] + ([self.ring.kick] if self.ring.kick is not None else [])
            ready, _, _ = select.select(sources, [], [])
            if self.ring.kick in ready:
                os.read(self.ring.kick, 8)
                self.ring.serve(self.memory)
            if self.connection in ready and not self.message():
                return

    def message(self):
        header, files, _, _ = socket.recv_fds(self.connection, HEADER.size, MAX_DESCRIPTORS)
        if not header:
            return False
        header += self.receive(HEADER.size - len(header))
        request, flags, size = HEADER.unpack(header)
        if size > MAX_PAYLOAD:
            raise Broken(f"a message of {size} bytes")
        answer = self.obey(request, self.receive(size), files)
        if answer is None and flags & NEED_REPLY:
            answer = struct.pack("<Q", 0)
        if answer is not None:
            self.connection.sendall(HEADER.pack(request, VERSION | REPLY, len(answer)) + answer)
        return True

    def receive(self, size):
        data = b""
        while len(data) < size:
            part = self.connection.recv(size - len(data))
            if not part:
                raise Broken("half a message")
            data += part
        return data

    def obey(self, request, payload, files):
        """Does what a request says; its answer, if it has one."""
        ring = self.ring
        if request == GET_FEATURES:
            return struct.pack("<Q", FEATURES)
        if request == GET_PROTOCOL_FEATURES:
            return struct.pack("<Q", PROTOCOL_FEATURES)
        if request == SET_MEM_TABLE:
            self.memory = Memory(payload, files)
            for file in files:
                os.close(file)
        elif request == SET_VRING_NUM:
            _, ring.size = struct.unpack("<II", payload)
        elif request == SET_VRING_BASE:
            _, ring.base = struct.unpack("<II", payload)
        elif request == SET_VRING_ADDR:
            _, _, table, used, available, _ = struct.unpack("<IIQQQQ", payload)
            ring.place(self.memory, table, used, available)
        elif request == SET_VRING_CALL:
            ring.call = self.replace(ring.call, payload, files)
        elif request == SET_VRING_KICK:
            ring.kick = self.replace(ring.kick, payload, files)
        elif request == SET_VRING_ERR:
            os.close(self.replace(None, payload, files))
        elif request == GET_VRING_BASE:
            # It ends the ring's work.
            ring.kick = self.replace(ring.kick, struct.pack("<Q", NO_EVENT), [])
            return struct.pack("<II", 0, ring.base)
        elif request not in (SET_OWNER, SET_FEATURES, SET_PROTOCOL_FEATURES, SET_VRING_ENABLE):
            raise Broken(f"request {request} was not offered")
        return None

    @staticmethod
    def replace(old, payload, files):
        """The event of a message in place of the one before."""
        if old is not None:
            os.close(old)
        (event,) = struct.unpack("<Q", payload)
        return None if event & NO_EVENT else files[0]


def main(path):
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    while True:
        connection, _ = listener.accept()
        with connection:
            try:
                Session(connection).run()
            except (Broken, OSError, struct.error) as error:
                print(f"{path}: {error}", file=sys.stderr)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: vhost_user_rng.py SOCKET")
    main(sys.argv[1])
