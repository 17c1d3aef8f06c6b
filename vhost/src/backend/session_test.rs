//! The back end with a front end that others have written: that of the `vhost` crate.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::JoinHandle;

use gvmm_plugin_api::interrupt::Event;
use gvmm_plugin_api::services::Services;
use gvmm_plugin_api::testing::{FakeMemory, QueueDriver, wait_readable, wait_until};
use gvmm_plugin_api::virtio::{F_EVENT_IDX, F_VERSION_1, QueueSetup, QueueState, VirtioDevice};
use proptest::prelude::*;
use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserInflight, VhostUserProtocolFeatures as Protocol,
};
use vhost::vhost_user::{Frontend, FrontendReqHandler, VhostUserFrontend, VhostUserFrontendReqHandler};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::EventFd;

use super::host::BackendHost;
use super::server::{End, serve};
use crate::protocol::features::PROTOCOL_FEATURES;
use crate::protocol::payload::{Config, Payload};
use crate::protocol::{Channel, Deadline, flag, request};
use crate::testing::{Copier, F_COPIER, IN, OUT, QUEUE_SIZE, Recorder, copy_request};

/// A device behind a connection, served by a thread.
struct Served {
    device: Arc<Copier>,
    surroundings: Recorder,
    stop: Event,
    thread: JoinHandle<End>,
}

impl Served {
    fn start() -> (Self, UnixStream) {
        let surroundings = Recorder::default();
        let host = Arc::new(BackendHost::new(Box::new(surroundings.clone())));
        let device = Copier::new(Services::new(host.clone()));
        let stop = Event::new().unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (served, stopped) = (device.clone() as Arc<dyn VirtioDevice>, stop.try_clone().unwrap());
        let thread = std::thread::spawn(move || serve(&served, &host, &Channel::from(ours), stopped.as_fd()));
        (Self { device, surroundings, stop, thread }, theirs)
    }

    fn end(self) -> End {
        self.thread.join().unwrap()
    }
}

/// A front end with the memory of a guest.
struct Peer {
    frontend: Frontend,
    memory: Arc<FakeMemory>,
}

impl Peer {
    /// Negotiates everything and shares memory.
    fn connect(stream: UnixStream, memory: Arc<FakeMemory>) -> Self {
        let mut frontend = Frontend::from_stream(stream, 2);
        frontend.set_owner().unwrap();
        let offered = frontend.get_features().unwrap();
        assert_eq!(offered & (PROTOCOL_FEATURES | F_COPIER), PROTOCOL_FEATURES | F_COPIER);
        let protocol = frontend.get_protocol_features().unwrap();
        let wanted = Protocol::MQ
            | Protocol::REPLY_ACK
            | Protocol::BACKEND_REQ
            | Protocol::CONFIG
            | Protocol::INFLIGHT_SHMFD
            | Protocol::RESET_DEVICE
            | Protocol::CONFIGURE_MEM_SLOTS;
        assert_eq!(protocol & wanted, wanted);
        frontend.set_protocol_features(wanted).unwrap();
        frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        assert_eq!(frontend.get_queue_num().unwrap(), 2);
        frontend.set_features(F_VERSION_1 | F_EVENT_IDX | F_COPIER | PROTOCOL_FEATURES).unwrap();
        let peer = Self { frontend, memory };
        peer.frontend.set_mem_table(&[peer.region()]).unwrap();
        peer
    }

    fn region(&self) -> VhostUserMemoryRegionInfo {
        let region = self.memory.region();
        let (file, offset) = region.file().unwrap();
        VhostUserMemoryRegionInfo {
            guest_phys_addr: region.guest_address(),
            memory_size: region.size(),
            userspace_addr: region.host_address() as u64,
            mmap_offset: offset,
            mmap_handle: file,
        }
    }

    fn driver(&self, index: u16) -> QueueDriver {
        QueueDriver::new(self.memory.clone(), index, QUEUE_SIZE, F_EVENT_IDX)
    }

    fn start(&mut self, index: usize, driver: &QueueDriver, base: u16) {
        let setup = driver.setup(QueueState::default());
        let user = |guest: u64| guest - FakeMemory::BASE + self.memory.region().host_address() as u64;
        let config = VringConfigData {
            queue_max_size: QUEUE_SIZE,
            queue_size: QUEUE_SIZE,
            flags: 0,
            desc_table_addr: user(setup.descriptor_table),
            used_ring_addr: user(setup.used_ring),
            avail_ring_addr: user(setup.available_ring),
            log_addr: None,
        };
        self.frontend.set_vring_num(index, QUEUE_SIZE).unwrap();
        self.frontend.set_vring_addr(index, &config).unwrap();
        self.frontend.set_vring_base(index, base).unwrap();
        let QueueSetup { kick, call, .. } = setup;
        self.frontend.set_vring_call(index, &eventfd(call.into_event())).unwrap();
        self.frontend.set_vring_kick(index, &eventfd(kick)).unwrap();
        self.frontend.set_vring_enable(index, true).unwrap();
    }
}

fn eventfd(event: Event) -> EventFd {
    use std::os::fd::{FromRawFd, IntoRawFd};
    // SAFETY: the descriptor is an eventfd that nobody else owns.
    unsafe { EventFd::from_raw_fd(OwnedFd::from(event).into_raw_fd()) }
}

fn memory() -> Arc<FakeMemory> {
    Arc::new(FakeMemory::new(2 << 20))
}

fn copies(peer: &Peer, driver: &mut QueueDriver, text: &[u8]) {
    peer.memory.write(IN, text);
    driver.request(&copy_request(text.len() as u32));
    assert_eq!(peer.memory.read(OUT, text.len()), text);
}

#[test]
fn requests_of_both_queues_are_served_and_the_base_says_where_they_stand() {
    let (served, stream) = Served::start();
    let mut peer = Peer::connect(stream, memory());
    let (mut first, mut second) = (peer.driver(0), peer.driver(1));
    peer.start(0, &first, 0);
    peer.start(1, &second, 0);
    for i in 0..40_u8 {
        copies(&peer, &mut first, &[b'a', i]);
    }
    copies(&peer, &mut second, b"b");
    assert_eq!(peer.frontend.get_vring_base(0).unwrap(), 40);
    assert_eq!(peer.frontend.get_vring_base(1).unwrap(), 1);
    // A queue that was stopped goes on from its base.
    peer.start(0, &first, 40);
    copies(&peer, &mut first, b"again");
    drop(peer);
    assert!(matches!(served.end(), End::Gone));
}

#[test]
fn a_queue_does_nothing_until_it_is_enabled() {
    let (served, stream) = Served::start();
    let mut peer = Peer::connect(stream, memory());
    let mut driver = peer.driver(0);
    peer.start(0, &driver, 0);
    peer.frontend.set_vring_enable(0, false).unwrap();
    driver.add(&copy_request(4));
    driver.kick();
    // The answer shows that the request before it has been done.
    peer.frontend.set_vring_enable(1, false).unwrap();
    assert_eq!(driver.poll_used(), None);
    peer.frontend.set_vring_enable(0, true).unwrap();
    driver.wait_used();
    drop(peer);
    served.end();
}

#[test]
fn events_and_memory_change_under_a_running_queue() {
    let (served, stream) = Served::start();
    let mut peer = Peer::connect(stream, memory());
    let mut driver = peer.driver(0);
    peer.start(0, &driver, 0);
    copies(&peer, &mut driver, b"before");
    let call = EventFd::new(libc::EFD_NONBLOCK).unwrap();
    peer.frontend.set_vring_call(0, &call).unwrap();
    while call.read().is_ok() {}
    driver.add(&copy_request(4));
    driver.kick();
    // SAFETY: the descriptor is open as long as `call`.
    wait_readable("the new call event", unsafe { std::os::fd::BorrowedFd::borrow_raw(call.as_raw_fd()) });
    assert!(driver.poll_used().is_some());
    peer.frontend.set_mem_table(&[peer.region()]).unwrap();
    driver.add(&copy_request(4));
    driver.kick();
    wait_until("the request after the change of memory", || driver.poll_used().is_some());
    drop(peer);
    served.end();
}

#[test]
fn memory_comes_region_by_region_as_well() {
    let (served, stream) = Served::start();
    let mut peer = Peer::connect(stream, memory());
    let mut driver = peer.driver(0);
    assert_eq!(peer.frontend.get_max_mem_slots().unwrap(), 32);
    let region = peer.region();
    peer.frontend.remove_mem_region(&region).unwrap();
    assert!(peer.frontend.remove_mem_region(&region).is_err());
    peer.frontend.add_mem_region(&region).unwrap();
    peer.start(0, &driver, 0);
    copies(&peer, &mut driver, b"added");
    drop(peer);
    served.end();
}

#[test]
fn configuration_is_read_and_written_and_its_changes_are_told() {
    struct Changes(EventFd);
    impl VhostUserFrontendReqHandler for Changes {
        fn handle_config_change(&self) -> vhost::vhost_user::HandlerResult<u64> {
            self.0.write(1).map(|()| 0)
        }
    }
    let (served, stream) = Served::start();
    let mut peer = Peer::connect(stream, memory());
    let mut get = |offset: u32, size: u32| {
        let buffer = vec![0; size as usize];
        peer.frontend.get_config(offset, size, VhostUserConfigFlags::empty(), &buffer).map(|(_, bytes)| bytes)
    };
    assert_eq!(get(0, 8).unwrap(), b"config:0");
    assert_eq!(get(4, 2).unwrap(), b"ig");
    // A front end of another age may know more fields than the device has.
    assert_eq!(get(0, 12).unwrap(), b"config:0\0\0\0\0");
    peer.frontend.set_config(7, VhostUserConfigFlags::WRITABLE, b"1").unwrap();
    assert!(peer.frontend.set_config(8, VhostUserConfigFlags::WRITABLE, b"1").is_err());

    let changes = Arc::new(Changes(EventFd::new(0).unwrap()));
    let mut requests = FrontendReqHandler::new(changes.clone()).unwrap();
    // SAFETY: the descriptor is open as long as `requests`.
    let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(requests.get_tx_raw_fd()) };
    peer.frontend.set_backend_request_fd(&fd).unwrap();
    served.device.change_config(*b"config:2");
    requests.handle_request().unwrap();
    assert_eq!(changes.0.read().unwrap(), 1);
    drop(peer);
    served.end();
}

#[test]
fn a_device_that_breaks_says_so_and_is_whole_after_a_reset() {
    let (served, stream) = Served::start();
    let mut peer = Peer::connect(stream, memory());
    let mut driver = peer.driver(0);
    peer.start(0, &driver, 0);
    let error = Event::new().unwrap();
    peer.frontend.set_vring_err(0, &eventfd(error.try_clone().unwrap())).unwrap();
    peer.memory.write(IN, b"!");
    driver.add(&copy_request(1));
    driver.kick();
    wait_readable("the error event", error.as_fd());
    assert_eq!(served.surroundings.failures(), ["queue 0: told to break"]);
    peer.frontend.get_vring_base(0).unwrap();
    peer.frontend.reset_device().unwrap();
    let mut driver = peer.driver(0);
    peer.start(0, &driver, 0);
    copies(&peer, &mut driver, b"whole");
    drop(peer);
    served.end();
}

#[test]
fn requests_in_flight_survive_the_back_end() {
    let (served, stream) = Served::start();
    let memory = memory();
    let mut peer = Peer::connect(stream, memory.clone());
    let asked = VhostUserInflight { num_queues: 2, queue_size: QUEUE_SIZE, ..VhostUserInflight::default() };
    let (description, file) = peer.frontend.get_inflight_fd(&asked).unwrap();
    peer.frontend.set_inflight_fd(&description, file.as_raw_fd()).unwrap();
    let mut driver = peer.driver(0);
    peer.start(0, &driver, 0);
    copies(&peer, &mut driver, b"before");
    // As if the back end had died after it had taken the next request: the note is there, the completion is not.
    peer.frontend.get_vring_base(0).unwrap();
    let head = driver.add(&copy_request(4));
    use std::os::unix::fs::FileExt;
    file.write_all_at(&[1], 16 + 16 * u64::from(head)).unwrap();
    drop(peer);
    served.end();

    let (served, stream) = Served::start();
    let mut peer = Peer::connect(stream, memory);
    peer.frontend.set_inflight_fd(&description, file.as_raw_fd()).unwrap();
    // The base is that of a front end which knows nothing of the request; the notes prevail.
    peer.start(0, &driver, 1);
    assert_eq!(driver.wait_used().head, head);
    copies(&peer, &mut driver, b"after");
    assert_eq!(peer.frontend.get_vring_base(0).unwrap(), 3);
    drop(peer);
    served.end();
}

#[test]
fn the_program_ends_in_the_middle_of_a_session() {
    let (served, stream) = Served::start();
    let peer = Peer::connect(stream, memory());
    served.stop.signal();
    assert!(matches!(served.end(), End::Stopped));
    drop(peer);
}

#[test]
fn requests_that_make_no_sense_are_refused_with_their_name() {
    let refuse = |code: u32, body: &[u8], fds: &[std::os::fd::BorrowedFd<'_>]| {
        let (served, stream) = Served::start();
        let channel = Channel::from(stream);
        channel.send(code, 0, body, fds, Deadline::NEVER).unwrap();
        match served.end() {
            End::Fault(text) => text,
            other => panic!("request {code} ended with {other:?}"),
        }
    };
    let null = std::fs::File::open("/dev/null").unwrap();
    let ring = |index: u32, num: u32| [index.to_ne_bytes(), num.to_ne_bytes()].concat();
    let no_queue = "the device has no queue 2, it has 2";
    assert_eq!(refuse(request::SET_VRING_NUM, &ring(2, 16), &[]), format!("SET_VRING_NUM: {no_queue}"));
    assert_eq!(
        refuse(request::SET_VRING_NUM, &ring(0, 17), &[]),
        "SET_VRING_NUM: queue 0 cannot have 17 entries, up to 16 can be"
    );
    assert_eq!(
        refuse(request::SET_FEATURES, &(1_u64 << 63).encode(), &[]),
        "SET_FEATURES: features 0x8000000000000000 were not offered"
    );
    assert_eq!(
        refuse(request::SET_VRING_KICK, &0_u64.encode(), &[]),
        "SET_VRING_KICK: its descriptor and its flag contradict each other"
    );
    assert_eq!(
        refuse(request::SET_VRING_KICK, &0x100_u64.encode(), &[]),
        "SET_VRING_KICK: queue 0 is to be polled, which is not supported"
    );
    assert_eq!(
        refuse(request::SET_VRING_CALL, &0_u64.encode(), &[null.as_fd(); 2]),
        "SET_VRING_CALL: it came with 2 descriptors"
    );
    assert_eq!(refuse(99, &[], &[]), "a request this gvmm does not know: request 99 is not supported");
    assert_eq!(
        refuse(request::SET_VRING_NUM, &[0; 7], &[]),
        "malformed message: message 8 with a payload of 7 bytes"
    );
}

#[test]
fn what_is_refused_can_be_answered_instead_of_ending_the_session() {
    let (served, stream) = Served::start();
    let channel = Channel::from(stream);
    let ask = |code: u32, flags: u32, body: &[u8]| {
        channel.send(code, flags, body, &[], Deadline::NEVER).unwrap();
        channel.receive(Deadline::NEVER).unwrap()
    };
    channel.send(request::SET_PROTOCOL_FEATURES, 0, &8_u64.encode(), &[], Deadline::NEVER).unwrap();
    let answer = ask(request::SET_STATUS, flag::NEED_REPLY, &256_u64.encode());
    assert_eq!((answer.code, answer.payload::<u64>().unwrap()), (request::SET_STATUS, 1));
    assert_eq!(ask(request::SET_STATUS, flag::NEED_REPLY, &15_u64.encode()).payload::<u64>().unwrap(), 0);
    assert_eq!(ask(request::GET_STATUS, 0, &[]).payload::<u64>().unwrap(), 15);
    let config = Config { offset: 300, flags: 0, content: vec![0; 4] };
    let answer: Config = ask(request::GET_CONFIG, 0, &config.encode()).payload().unwrap();
    assert_eq!(answer.content, b"");
    drop(channel);
    assert!(matches!(served.end(), End::Gone));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    /// Whatever a front end sends, the session ends by an answer or an error, and the device is whole for the next one.
    #[test]
    fn any_requests_leave_the_device_whole(
        messages in prop::collection::vec((0_u32..45, 0_u32..16, prop::collection::vec(any::<u8>(), 0..64), 0_usize..3), 0..20)
    ) {
        let (served, stream) = Served::start();
        let channel = Channel::from(stream.try_clone().unwrap());
        let memfd = nix::sys::memfd::memfd_create(c"any", nix::sys::memfd::MFdFlags::MFD_CLOEXEC).unwrap();
        nix::unistd::ftruncate(&memfd, 1 << 16).unwrap();
        for (code, flags, body, fds) in messages {
            if channel.send(code, flags, &body, &vec![memfd.as_fd(); fds], Deadline::NEVER).is_err() {
                break;
            }
        }
        drop(channel);
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let end = served.end();
        prop_assert!(!matches!(end, End::Stopped), "{end:?}");
    }
}
