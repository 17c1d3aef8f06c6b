//! A program that uses the driver: raw requests, and a whole machine made of them.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use super::tree::Tree;

pub(crate) const PAGE: usize = 4096;
pub(crate) const RAM: u64 = 0x8000_0000;
pub(crate) const RAM_SIZE: u64 = 4 << 20;
pub(crate) const TREE: u64 = RAM + (2 << 20);
pub(crate) const TREE_SIZE: u64 = 0x4000;

pub(crate) const CREATE_VM: u32 = 0x4700;
pub(crate) const SET_USER_MEM_REGION: u32 = 0x4020_4701;
pub(crate) const SET_DTB_CONFIG: u32 = 0x4010_4702;
pub(crate) const START: u32 = 0x4703;
pub(crate) const ADD_FUNCTION: u32 = 0x4010_4704;
pub(crate) const VCPU_RUN: u32 = 0x4705;
pub(crate) const VCPU_MMAP_SIZE: u32 = 0x4706;
pub(crate) const REMOVE_FUNCTION: u32 = 0x4010_4707;
pub(crate) const CREATE_GUEST_MEM: u32 = 0x4040_4708;
pub(crate) const MAP_MEM: u32 = 0x4020_4709;
pub(crate) const SET_BOOT_CONTEXT: u32 = 0x4010_470a;
pub(crate) const LEND_USER_MEM: u32 = 0x4020_4111;

/// A result with the errno.
pub(crate) type Answer = Result<i32, i32>;

pub(crate) fn ioctl(fd: RawFd, request: u32, arg: u64) -> Answer {
    // SAFETY: `arg` is a number or the address of a structure the caller keeps alive.
    let value = unsafe { libc::ioctl(fd, request.into(), arg) };
    if value < 0 { Err(std::io::Error::last_os_error().raw_os_error().unwrap()) } else { Ok(value) }
}

/// A request with a structure given as 64-bit words.
pub(crate) fn with_words(fd: RawFd, request: u32, words: &[u64]) -> Answer {
    ioctl(fd, request, words.as_ptr().expose_provenance() as u64)
}

/// Two 32-bit fields as they lie in memory.
pub(crate) fn pair(first: u32, second: u32) -> u64 {
    u64::from(first) | u64::from(second) << 32
}

pub(crate) fn open_node() -> std::io::Result<File> {
    OpenOptions::new().read(true).write(true).open("/dev/gunyah")
}

pub(crate) fn eventfd() -> OwnedFd {
    // SAFETY: eventfd takes no pointers.
    let fd = unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) };
    assert!(fd >= 0);
    // SAFETY: the call just returned this descriptor.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

pub(crate) fn signal(event: &OwnedFd) {
    // SAFETY: the buffer is 8 valid bytes.
    let written = unsafe { libc::write(event.as_raw_fd(), (&raw const ONE).cast(), 8) };
    assert_eq!(written, 8);
}

static ONE: u64 = 1;

pub(crate) fn count(event: &OwnedFd) -> u64 {
    let mut value = 0u64;
    // SAFETY: the buffer is 8 valid bytes.
    unsafe { libc::read(event.as_raw_fd(), (&raw mut value).cast(), 8) };
    value
}

/// Memory of this process.
pub(crate) struct Pages {
    pub(crate) at: *mut u8,
    pub(crate) size: usize,
}

impl Pages {
    pub(crate) fn map(size: u64, flags: i32, fd: RawFd) -> Result<Pages, i32> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), size as usize, protection, flags, fd, 0) };
        if at == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error().raw_os_error().unwrap());
        }
        Ok(Pages { at: at.cast(), size: size as usize })
    }

    pub(crate) fn anonymous(size: u64) -> Pages {
        Pages::map(size, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1).unwrap()
    }

    pub(crate) fn address(&self) -> u64 {
        self.at.expose_provenance() as u64
    }

    pub(crate) fn store(&self, offset: usize, bytes: &[u8]) {
        assert!(offset + bytes.len() <= self.size);
        // SAFETY: the range is inside the mapping.
        let at = unsafe { self.at.add(offset) };
        // SAFETY: as above; the source is a slice.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), at, bytes.len()) };
    }

    pub(crate) fn load<const N: usize>(&self, offset: usize) -> [u8; N] {
        assert!(offset + N <= self.size);
        // SAFETY: the range is inside the mapping.
        let at = unsafe { self.at.add(offset) };
        // SAFETY: as above; any bytes are an array of bytes.
        unsafe { at.cast::<[u8; N]>().read_volatile() }
    }

    /// Whether a system call can read the first byte at `offset`: false where a touch would raise a signal.
    pub(crate) fn is_readable(&self, offset: usize) -> bool {
        let (reader, writer) = std::io::pipe().unwrap();
        // SAFETY: the kernel checks the address.
        let written = unsafe { libc::write(writer.as_raw_fd(), self.at.wrapping_add(offset).cast(), 1) };
        drop(reader);
        written == 1
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own.
        unsafe { libc::munmap(self.at.cast(), self.size) };
    }
}

/// One vCPU: its descriptor and run page.
pub(crate) struct Vcpu {
    pub(crate) page: Pages,
    pub(crate) fd: OwnedFd,
}

impl Vcpu {
    pub(crate) fn run(&self) -> Answer {
        ioctl(self.fd.as_raw_fd(), VCPU_RUN, 0)
    }

    pub(crate) fn reason(&self) -> u32 {
        u32::from_le_bytes(self.page.load(8))
    }

    /// Address, length and, for a write, data of an access.
    pub(crate) fn access(&self) -> (u64, u32, Option<u64>) {
        assert_eq!(self.reason(), 1, "not an access");
        let [is_write] = self.page.load(36);
        let data = u64::from_le_bytes(self.page.load(24));
        let len = u32::from_le_bytes(self.page.load(32));
        let mask = if len == 8 { u64::MAX } else { (1 << (8 * len)) - 1 };
        (u64::from_le_bytes(self.page.load(16)), len, (is_write == 1).then_some(data & mask))
    }

    pub(crate) fn answer(&self, data: u64) {
        self.page.store(24, &data.to_le_bytes());
    }

    /// Status and type of the VM's end.
    pub(crate) fn status(&self) -> (u32, u16) {
        assert_eq!(self.reason(), 2, "not a status");
        (u32::from_le_bytes(self.page.load(16)), u16::from_le_bytes(self.page.load(20)))
    }

    /// Address and errno of a page fault.
    pub(crate) fn fault(&self) -> (u64, i32) {
        assert_eq!(self.reason(), 3, "not a page fault");
        (u64::from_le_bytes(self.page.load(16)), i32::from_le_bytes(self.page.load(24)))
    }
}

/// A VM and what it was given.
pub(crate) struct Machine {
    // In the order of a clean teardown.
    pub(crate) vcpus: Vec<Vcpu>,
    pub(crate) vm: OwnedFd,
    pub(crate) ram: Pages,
    pub(crate) node: File,
}

impl Machine {
    /// A VM without memory.
    pub(crate) fn empty() -> Machine {
        let node = open_node().unwrap();
        let vm = ioctl(node.as_raw_fd(), CREATE_VM, 0).unwrap();
        // SAFETY: the driver just returned this descriptor.
        let vm = unsafe { OwnedFd::from_raw_fd(vm) };
        Machine { vcpus: Vec::new(), vm, ram: Pages::anonymous(RAM_SIZE), node }
    }

    /// Everything up to START, the way the generation wants it.
    pub(crate) fn new(kind: &str, tree: &Tree) -> Machine {
        let mut machine = Machine::empty();
        machine.ram.store((TREE - RAM) as usize, &tree.build());
        match kind {
            "A" => machine.share(0, RAM).unwrap(),
            "A+" | "C" | "C+" => machine.lend(0, RAM).unwrap(),
            _ => {
                let (ram, object) = machine.guest_mem();
                machine.ram = ram;
                machine.ram.store((TREE - RAM) as usize, &tree.build());
                machine.map_guest_mem(object.as_raw_fd(), 0x70).unwrap()
            }
        };
        if !kind.starts_with('A') {
            machine.boot_context(0x100, RAM).unwrap();
        }
        for id in 0..tree.vcpus {
            machine.add_vcpu(id).unwrap();
        }
        machine.set_tree(TREE, TREE_SIZE).unwrap();
        machine
    }

    /// A running VM of the simulated generation, with one vCPU.
    pub(crate) fn started() -> Machine {
        let machine = Machine::new(&super::kind(), &Tree::default());
        machine.start().unwrap();
        machine
    }

    fn request(&self, number: u32, words: &[u64]) -> Answer {
        with_words(self.vm.as_raw_fd(), number, words)
    }

    pub(crate) fn share(&self, label: u32, guest: u64) -> Answer {
        self.request(SET_USER_MEM_REGION, &[pair(label, 7), guest, RAM_SIZE, self.ram.address()])
    }

    pub(crate) fn lend(&self, label: u32, guest: u64) -> Answer {
        self.request(LEND_USER_MEM, &[pair(label, 7), guest, RAM_SIZE, self.ram.address()])
    }

    pub(crate) fn share_pages(&self, label: u32, flags: u32, guest: u64, pages: &Pages) -> Answer {
        let words = [pair(label, flags), guest, pages.size as u64, pages.address()];
        self.request(SET_USER_MEM_REGION, &words)
    }

    /// A guest-memfd object of RAM's size and a mapping of it.
    pub(crate) fn guest_mem(&self) -> (Pages, OwnedFd) {
        let words = [1, RAM_SIZE, 0, 0, 0, 0, 0, 0];
        let fd = with_words(self.node.as_raw_fd(), CREATE_GUEST_MEM, &words).unwrap();
        // SAFETY: the driver just returned this descriptor.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        (Pages::map(RAM_SIZE, libc::MAP_SHARED, fd.as_raw_fd()).unwrap(), fd)
    }

    pub(crate) fn map_guest_mem(&self, object: RawFd, flags: u32) -> Answer {
        self.request(MAP_MEM, &[RAM, pair(flags, object.cast_unsigned()), 0, RAM_SIZE])
    }

    pub(crate) fn set_tree(&self, guest: u64, size: u64) -> Answer {
        self.request(SET_DTB_CONFIG, &[guest, size])
    }

    pub(crate) fn boot_context(&self, register: u32, value: u64) -> Answer {
        self.request(SET_BOOT_CONTEXT, &[register.into(), value])
    }

    pub(crate) fn function(&self, request: u32, kind: u32, size: u32, words: &[u64]) -> Answer {
        self.request(request, &[pair(kind, size), words.as_ptr().expose_provenance() as u64])
    }

    pub(crate) fn add_vcpu(&mut self, id: u32) -> Result<(), i32> {
        let fd = self.function(ADD_FUNCTION, 1, 4, &[id.into()])?;
        // SAFETY: the driver just returned this descriptor.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let page = Pages::map(PAGE as u64, libc::MAP_SHARED, fd.as_raw_fd())?;
        self.vcpus.push(Vcpu { page, fd });
        Ok(())
    }

    pub(crate) fn irqfd(&self, request: u32, event: RawFd, label: u32, flags: u32) -> Answer {
        self.function(request, 2, 16, &[pair(event.cast_unsigned(), label), flags.into()])
    }

    /// `datamatch` wants a length other than 0.
    pub(crate) fn ioeventfd(
        &self,
        request: u32,
        event: RawFd,
        addr: u64,
        len: u32,
        datamatch: Option<u64>,
    ) -> Answer {
        let flags = u64::from(datamatch.is_some());
        let words = [datamatch.unwrap_or(0), addr, pair(len, event.cast_unsigned()), flags];
        self.function(request, 3, 32, &words)
    }

    pub(crate) fn start(&self) -> Answer {
        ioctl(self.vm.as_raw_fd(), START, 0)
    }
}
