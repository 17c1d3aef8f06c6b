//! The front end with back ends of this crate, of others, and with such as break every rule.

use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use gvmm_plugin_api::interrupt::Event;
use gvmm_plugin_api::options::Values;
use gvmm_plugin_api::services::Services;
use gvmm_plugin_api::testing::{FakeHost, FakeMemory, PATIENCE, QueueDriver, wait_until};
use gvmm_plugin_api::virtio::{
    COMMON_FEATURES, F_EVENT_IDX, F_VERSION_1, QueueSetup, QueueState, VirtioDevice,
};
use proptest::prelude::*;

use super::options::Options;
use crate::backend::host::BackendHost;
use crate::backend::server::{End, serve};
use crate::protocol::features::{BACKEND_REQ, CONFIG, INFLIGHT_SHMFD, PROTOCOL_FEATURES, REPLY_ACK};
use crate::protocol::payload::{Inflight, Payload, VringState};
use crate::protocol::{Channel, Deadline, Message, flag, request};
use crate::testing::{Copier, F_COPIER, IN, OUT, QUEUE_SIZE, Recorder, copy_request};

/// A socket in a folder of its own.
struct Place {
    _folder: tempfile::TempDir,
    path: PathBuf,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        Self { _folder: folder, path }
    }

    fn listen(&self) -> UnixListener {
        let _ = std::fs::remove_file(&self.path);
        UnixListener::bind(&self.path).unwrap()
    }
}

/// A device of this crate's back end that serves one front end.
struct Served {
    device: Arc<Copier>,
    stop: Event,
    thread: JoinHandle<End>,
}

impl Served {
    fn start(place: &Place) -> Self {
        let host = Arc::new(BackendHost::new(Box::new(Recorder::default())));
        let device = Copier::new(Services::new(host.clone()));
        let stop = Event::new().unwrap();
        let listener = place.listen();
        let (served, stopped) = (device.clone() as Arc<dyn VirtioDevice>, stop.try_clone().unwrap());
        let thread = std::thread::spawn(move || {
            let channel = Channel::from(listener.accept().unwrap().0);
            drop(listener);
            serve(&served, &host, &channel, stopped.as_fd())
        });
        Self { device, stop, thread }
    }

    fn stop(self) {
        self.stop.signal();
        self.thread.join().unwrap();
    }
}

/// A machine with the device under test.
struct Machine {
    host: Arc<FakeHost>,
    device: Arc<dyn VirtioDevice>,
    memory: Arc<FakeMemory>,
}

fn connect(path: &Path, more: &[(&str, &str)]) -> Result<Machine, String> {
    let socket = path.to_str().unwrap();
    let size = QUEUE_SIZE.to_string();
    let mut given =
        vec![("type", "42"), ("socket", socket), ("config-size", "8"), ("queue-size", size.as_str())];
    given.retain(|(name, _)| more.iter().all(|(other, _)| name != other));
    let values = Values::check(Options::SPECS, given.into_iter().chain(more.iter().copied())).unwrap();
    let host = Arc::new(FakeHost::default());
    let device = super::connect(&values, host.clone())?;
    Ok(Machine { host, device, memory: Arc::new(FakeMemory::new(2 << 20)) })
}

impl Machine {
    fn start(&self, index: u16) -> QueueDriver {
        let driver = QueueDriver::new(self.memory.clone(), index, QUEUE_SIZE, F_EVENT_IDX);
        let features = F_VERSION_1 | F_EVENT_IDX | F_COPIER;
        let setup = QueueSetup { features, ..driver.setup(QueueState::default()) };
        self.device.start_queue(index, setup).unwrap();
        driver
    }

    fn copies(&self, driver: &mut QueueDriver, text: &[u8]) {
        self.memory.write(IN, text);
        self.memory.write(OUT, &vec![0; text.len()]);
        driver.request(&copy_request(text.len() as u32));
        assert_eq!(self.memory.read(OUT, text.len()), text);
    }

    fn metric(&self, name: &str) -> u64 {
        self.device.metrics().into_iter().find(|metric| metric.name == name).unwrap().value
    }

    fn config(&self) -> Vec<u8> {
        let mut config = vec![0; 8];
        self.device.read_config(0, &mut config);
        config
    }
}

#[test]
fn the_device_is_what_the_back_end_says() {
    let place = Place::new();
    let served = Served::start(&place);
    let machine = connect(&place.path, &[]).unwrap();
    let traits = machine.device.traits();
    assert_eq!((traits.device_type, traits.config_size), (42, 8));
    assert_eq!(traits.features, COMMON_FEATURES | F_COPIER);
    assert_eq!(traits.queue_sizes, [QUEUE_SIZE; 2]);
    assert_eq!(machine.config(), b"config:0");
    drop(machine);
    assert!(matches!(served.thread.join().unwrap(), End::Gone));
}

#[test]
fn requests_go_through_and_the_state_comes_back() {
    let place = Place::new();
    let served = Served::start(&place);
    let machine = connect(&place.path, &[]).unwrap();
    let (mut first, mut second) = (machine.start(0), machine.start(1));
    for i in 0..40_u8 {
        machine.copies(&mut first, &[b'a', i]);
    }
    machine.copies(&mut second, b"second");
    assert_eq!(machine.device.stop_queue(0), Some(QueueState { next_avail: 40, next_used: 40 }));
    assert_eq!(machine.device.stop_queue(0), None);
    assert_eq!(machine.device.stop_queue(1), Some(QueueState { next_avail: 1, next_used: 1 }));
    machine.device.reset();
    let mut first = machine.start(0);
    machine.copies(&mut first, b"after the reset");
    assert_eq!(machine.host.failures(), [""; 0]);
    drop(machine);
    served.thread.join().unwrap();
}

#[test]
fn configuration_is_kept_and_its_changes_are_told() {
    let place = Place::new();
    let served = Served::start(&place);
    let machine = connect(&place.path, &[]).unwrap();
    machine.device.write_config(7, b"5");
    assert_eq!(machine.config(), b"config:5");
    served.device.change_config(*b"changed!");
    wait_until("the change", || machine.config() == b"changed!");
    wait_until("the notice", || machine.host.config_changes() == 1);
    machine.device.reset();
    assert_eq!(machine.config(), b"config:0");
    drop(machine);
    served.thread.join().unwrap();
}

#[test]
fn a_back_end_that_returns_goes_on_where_the_one_before_ended() {
    let place = Place::new();
    let mut served = Served::start(&place);
    let machine = connect(&place.path, &[]).unwrap();
    let mut driver = machine.start(0);
    machine.device.write_config(0, b"C");
    for round in 0..5_u64 {
        machine.copies(&mut driver, format!("round {round}").as_bytes());
        served.stop();
        wait_until("the loss", || machine.metric("connected") == 0);
        // What is made meanwhile waits.
        machine.memory.write(IN, b"wait");
        driver.add(&copy_request(4));
        driver.kick();
        served = Served::start(&place);
        driver.wait_used();
        assert_eq!(machine.memory.read(OUT, 4), b"wait");
        // What the driver wrote to the configuration is told to the new one.
        assert_eq!(machine.config(), b"Config:0");
        wait_until("the return", || machine.metric("connections") == round + 2);
    }
    assert_eq!(machine.host.failures(), [""; 0]);
    assert_eq!(machine.metric("connections_lost"), 5);
    drop(machine);
    served.thread.join().unwrap();
}

#[test]
fn a_queue_started_while_nobody_is_there_waits_for_a_back_end() {
    let place = Place::new();
    let served = Served::start(&place);
    let machine = connect(&place.path, &[]).unwrap();
    served.stop();
    wait_until("the loss", || machine.metric("connected") == 0);
    let mut driver = machine.start(0);
    assert_eq!(machine.device.stop_queue(0), Some(QueueState::default()));
    machine.device.reset();
    drop(driver);
    driver = machine.start(0);
    let served = Served::start(&place);
    machine.copies(&mut driver, b"late");
    drop(machine);
    served.thread.join().unwrap();
}

#[test]
fn a_back_end_that_never_comes_is_an_error_that_names_the_socket() {
    let place = Place::new();
    let error = connect(&place.path, &[("wait", "0")]).err().unwrap();
    assert_eq!(error, format!("socket {}: No such file or directory", place.path.display()));
}

/// A back end in a few lines, which can misbehave. It answers requests until the function says otherwise.
struct Puppet {
    thread: JoinHandle<()>,
}

enum Act {
    /// As a good back end would.
    Normal,
    /// With these bytes as the answer's payload.
    Answer(Vec<u8>),
    /// Not at all.
    Silence,
    /// By closing the connection.
    Close,
}

/// What a puppet offers.
#[derive(Clone, Copy)]
struct Offer {
    features: u64,
    protocol: u64,
}

const PLAIN: Offer = Offer {
    features: F_VERSION_1 | F_EVENT_IDX | F_COPIER | PROTOCOL_FEATURES,
    protocol: REPLY_ACK | CONFIG,
};

impl Puppet {
    fn start(place: &Place, offer: Offer, mut act: impl FnMut(&Message) -> Act + Send + 'static) -> Self {
        let listener = place.listen();
        let thread = std::thread::spawn(move || {
            let channel = Channel::from(listener.accept().unwrap().0);
            drop(listener);
            while let Ok(message) = channel.receive(Deadline::NEVER) {
                let body = match act(&message) {
                    Act::Normal => good_answer(&message, offer),
                    Act::Answer(body) => Some(body),
                    Act::Silence => continue,
                    Act::Close => return,
                };
                if let Some(body) = body {
                    // The front end may be gone.
                    let _ = channel.send(message.code, flag::REPLY, &body, &[], Deadline::NEVER);
                }
            }
        });
        Self { thread }
    }
}

fn good_answer(message: &Message, offer: Offer) -> Option<Vec<u8>> {
    match message.code {
        request::GET_FEATURES => Some(offer.features.encode()),
        request::GET_PROTOCOL_FEATURES => Some(offer.protocol.encode()),
        request::GET_CONFIG => Some(message.body.clone()),
        request::GET_VRING_BASE => {
            let state: VringState = message.payload().unwrap();
            Some(state.encode())
        }
        _ => message.needs_reply().then(|| 0_u64.encode()),
    }
}

#[test]
fn a_queue_is_kicked_only_when_a_back_end_that_acknowledges_nothing_has_enabled_it() {
    let place = Place::new();
    let (mut kick, mut enabled) = (None, false);
    let (tell, told) = std::sync::mpsc::channel();
    let puppet = Puppet::start(&place, Offer { protocol: CONFIG, ..PLAIN }, move |message| {
        match message.code {
            request::SET_VRING_KICK => kick = Some(Event::from(message.fds[0].try_clone().unwrap())),
            request::SET_VRING_ENABLE => enabled = true,
            request::GET_FEATURES if enabled => tell.send(kick.as_ref().unwrap().take()).unwrap(),
            _ => {}
        }
        Act::Normal
    });
    let machine = connect(&place.path, &[("queues", "1")]).unwrap();
    let _driver = machine.start(0);
    assert_eq!(told.recv_timeout(PATIENCE), Ok(false), "whether it was kicked before");
    drop(machine);
    puppet.thread.join().unwrap();
}

#[test]
fn a_back_end_that_dies_in_the_first_handshake_is_waited_for() {
    let place = Arc::new(Place::new());
    let offer = Offer { protocol: PLAIN.protocol | BACKEND_REQ, ..PLAIN };
    let puppet = Puppet::start(&place, offer, |message| match message.code {
        request::SET_BACKEND_REQ_FD => Act::Close,
        _ => Act::Normal,
    });
    let second = place.clone();
    let next = std::thread::spawn(move || {
        puppet.thread.join().unwrap();
        Served::start(&second)
    });
    let machine = connect(&place.path, &[]).unwrap();
    machine.copies(&mut machine.start(0), b"served by the second");
    drop(machine);
    next.join().unwrap().thread.join().unwrap();
}

#[test]
fn a_back_end_without_notes_that_dies_with_requests_in_flight_needs_a_reset() {
    let place = Place::new();
    let puppet = Puppet::start(&place, PLAIN, |message| match message.code {
        request::SET_CONFIG => Act::Close,
        _ => Act::Normal,
    });
    let machine = connect(&place.path, &[("queues", "1")]).unwrap();
    let mut driver = machine.start(0);
    driver.add(&copy_request(4));
    // The puppet takes requests and completes none; this makes it die.
    machine.device.write_config(0, b"x");
    puppet.thread.join().unwrap();
    wait_until("the failure", || !machine.host.failures().is_empty());
    assert_eq!(
        machine.host.failures(),
        ["the back end was lost with requests in flight in queues [0] and keeps no notes of them \
          (protocol feature INFLIGHT_SHMFD): the driver has to reset the device"]
    );
    let served = Served::start(&place);
    wait_until("the return", || machine.metric("connected") == 1);
    assert_eq!(driver.poll_used(), None, "a request of which nobody knows was done again");
    // The driver does as it is told.
    assert!(machine.device.stop_queue(0).is_some());
    machine.device.reset();
    let mut driver = machine.start(0);
    machine.copies(&mut driver, b"anew");
    drop(machine);
    served.thread.join().unwrap();
}

#[test]
fn a_back_end_without_notes_goes_on_if_nothing_was_in_flight_or_order_tells() {
    for (in_order, request_in_flight) in [("off", false), ("on", true)] {
        let place = Place::new();
        let puppet = Puppet::start(&place, PLAIN, |message| match message.code {
            request::SET_CONFIG => Act::Close,
            _ => Act::Normal,
        });
        let machine = connect(&place.path, &[("queues", "1"), ("in-order", in_order)]).unwrap();
        let mut driver = machine.start(0);
        if request_in_flight {
            machine.memory.write(IN, b"once");
            driver.add(&copy_request(4));
        }
        machine.device.write_config(0, b"x");
        puppet.thread.join().unwrap();
        let served = Served::start(&place);
        if request_in_flight {
            driver.wait_used();
            assert_eq!(machine.memory.read(OUT, 4), b"once");
        }
        machine.copies(&mut driver, b"on it goes");
        assert_eq!(machine.host.failures(), [""; 0]);
        drop(machine);
        served.thread.join().unwrap();
    }
}

#[test]
fn a_back_end_that_refuses_a_queue_is_an_error_and_no_loss() {
    let place = Place::new();
    let puppet = Puppet::start(&place, PLAIN, |message| match message.code {
        request::SET_VRING_ADDR => Act::Answer(1_u64.encode()),
        _ => Act::Normal,
    });
    let machine = connect(&place.path, &[("queues", "1")]).unwrap();
    let driver = QueueDriver::new(machine.memory.clone(), 0, QUEUE_SIZE, 0);
    let error = machine.device.start_queue(0, driver.setup(QueueState::default())).unwrap_err();
    assert_eq!(error, "queue 0: the back end refused SET_VRING_ADDR");
    assert_eq!(machine.metric("connected"), 1);
    drop(machine);
    puppet.thread.join().unwrap();
}

#[test]
fn a_queue_that_is_too_large_for_the_back_end_is_an_error_that_names_the_way_out() {
    let place = Place::new();
    let served = Served::start(&place);
    let machine = connect(&place.path, &[("queue-size", "64")]).unwrap();
    let driver = QueueDriver::new(machine.memory.clone(), 0, 64, 0);
    let error = machine.device.start_queue(0, driver.setup(QueueState::default())).unwrap_err();
    assert_eq!(
        error,
        "queue 0: the back end refused a queue of 64 entries: give the size of its queues, by queue-size= for a device of \
         type vhost-user"
    );
    // A driver may also make its queues smaller.
    machine.copies(&mut machine.start(0), b"small enough");
    drop(machine);
    served.thread.join().unwrap();
}

#[test]
fn a_back_end_that_goes_when_it_is_asked_for_notes_is_lost_with_a_hint() {
    let place = Place::new();
    let offer = Offer { protocol: REPLY_ACK | CONFIG | INFLIGHT_SHMFD, ..PLAIN };
    let puppet = Puppet::start(&place, offer, |message| match message.code {
        request::GET_INFLIGHT_FD => Act::Close,
        _ => Act::Normal,
    });
    let machine = connect(&place.path, &[("queues", "1")]).unwrap();
    let _driver = machine.start(0);
    puppet.thread.join().unwrap();
    let wanted = "the back end is lost: it closed the connection when it was asked for notes on 1 queues of 16 entries \
                  (GET_INFLIGHT_FD): if it has fewer or smaller ones, say so by queues= and queue-size=";
    let lines = machine.host.log_lines();
    assert!(lines.iter().any(|(_, line)| line.contains(wanted)), "{lines:?}");
}

#[test]
fn silence_is_a_loss_after_the_time_allowed() {
    let place = Place::new();
    let puppet = Puppet::start(&place, PLAIN, |message| match message.code {
        request::SET_MEM_TABLE => Act::Silence,
        _ => Act::Normal,
    });
    let machine = connect(&place.path, &[("queues", "1"), ("timeout", "1")]).unwrap();
    let mut driver = machine.start(0);
    assert_eq!(machine.metric("connected"), 0);
    puppet.thread.join().unwrap();
    let served = Served::start(&place);
    machine.copies(&mut driver, b"answered");
    drop(machine);
    served.thread.join().unwrap();
}

#[test]
fn a_back_end_that_hangs_is_found_out_by_the_heartbeat() {
    let place = Place::new();
    let silent = Arc::new(Mutex::new(false));
    let hangs = silent.clone();
    let puppet = Puppet::start(&place, PLAIN, move |_| match *hangs.lock().unwrap() {
        true => Act::Silence,
        false => Act::Normal,
    });
    let options = [("queues", "1"), ("timeout", "1"), ("heartbeat", "1")];
    let machine = connect(&place.path, &options).unwrap();
    *silent.lock().unwrap() = true;
    wait_until("the loss", || machine.metric("connected") == 0);
    puppet.thread.join().unwrap();
    drop(machine);
}

#[test]
fn back_ends_that_cannot_serve_are_refused_in_words() {
    let refuse = |offer: Offer, more: &[(&str, &str)]| {
        let place = Place::new();
        let puppet = Puppet::start(&place, offer, |_| Act::Normal);
        let error = connect(&place.path, more).err().unwrap();
        puppet.thread.join().unwrap();
        error
    };
    let legacy = Offer { features: 0, protocol: 0 };
    assert_eq!(refuse(legacy, &[]), "the back end knows only drivers of before virtio 1.0");
    let bare = Offer { features: F_VERSION_1, protocol: 0 };
    assert!(refuse(bare, &[("type", "blk"), ("wait", "0")]).contains("needs"), "blk without configuration");
}

#[test]
fn features_that_are_not_the_drivers_business_are_not_offered_to_it() {
    let place = Place::new();
    let offer = Offer { features: u64::MAX, protocol: 0 };
    let puppet = Puppet::start(&place, offer, |_| Act::Normal);
    let options = [("type", "rng"), ("config-size", "0")];
    let machine = connect(&place.path, &options).unwrap();
    let features = machine.device.traits().features;
    assert_eq!(features & crate::protocol::features::NOT_FOR_DRIVER, 0);
    assert_ne!(features & (1 << 35), 0, "VIRTIO_F_IN_ORDER changes nothing for the transport");
    drop(machine);
    puppet.thread.join().unwrap();
}

#[test]
fn a_network_device_gets_the_configuration_that_its_back_end_lacks() {
    let place = Place::new();
    let offer = Offer { features: F_VERSION_1 | PROTOCOL_FEATURES | (1 << 22) | 1, protocol: REPLY_ACK };
    let puppet = Puppet::start(&place, offer, |_| Act::Normal);
    let options = [("type", "net"), ("mac", "52:54:00:12:34:56")];
    let machine = connect(&place.path, &options).unwrap();
    let traits = machine.device.traits();
    assert_eq!((traits.queue_sizes.len(), traits.config_size), (2, 12));
    assert_eq!(traits.features, F_VERSION_1 | 1 | (1 << 5));
    assert_eq!(machine.config()[..6], [0x52, 0x54, 0, 0x12, 0x34, 0x56]);
    drop(machine);
    puppet.thread.join().unwrap();
}

#[test]
fn a_file_system_has_the_name_of_its_option() {
    let place = Place::new();
    let offer = Offer { features: F_VERSION_1 | PROTOCOL_FEATURES, protocol: REPLY_ACK };
    let puppet = Puppet::start(&place, offer, |_| Act::Normal);
    let machine = connect(&place.path, &[("type", "fs"), ("tag", "data")]).unwrap();
    let mut config = [0; 40];
    machine.device.read_config(0, &mut config);
    assert_eq!((&config[..5], &config[36..]), (&b"data\0"[..], &[1, 0, 0, 0][..]));
    drop(machine);
    puppet.thread.join().unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    /// Whatever a back end answers, and whenever it goes: no panic, no hang, and the next one serves the device.
    #[test]
    fn any_back_end_is_survived(
        acts in prop::collection::vec((0_u8..8, prop::collection::vec(any::<u8>(), 0..24)), 0..25),
        protocol in any::<u64>(),
    ) {
        let place = Place::new();
        let mut acts = acts.into_iter();
        // Notes need a descriptor, which the puppet does not give: it is refused.
        let offer = Offer { protocol: protocol & (REPLY_ACK | INFLIGHT_SHMFD | 0xffff_0000) | CONFIG, ..PLAIN };
        let mut good = 6;
        let puppet = Puppet::start(&place, offer, move |message| {
            // Most of the first handshake goes well.
            good -= 1;
            if good > 0 {
                return Act::Normal;
            }
            match acts.next() {
                Some((0, _)) => Act::Close,
                Some((1, body)) if message.needs_reply() => Act::Answer(body),
                _ => Act::Normal,
            }
        });
        if let Ok(machine) = connect(&place.path, &[("queues", "1"), ("timeout", "1"), ("wait", "0")]) {
            let driver = QueueDriver::new(machine.memory.clone(), 0, QUEUE_SIZE, F_EVENT_IDX);
            let _ = machine.device.start_queue(0, driver.setup(QueueState::default()));
            machine.device.write_config(0, b"x");
            let _ = machine.device.stop_queue(0);
            machine.device.reset();
            drop(machine);
        } else {
            // The puppet may still wait for a front end.
            let _ = std::os::unix::net::UnixStream::connect(&place.path);
        }
        puppet.thread.join().unwrap();
    }
}

#[test]
fn notes_come_with_one_descriptor_or_are_refused() {
    let place = Place::new();
    let offer = Offer { protocol: REPLY_ACK | CONFIG | INFLIGHT_SHMFD, ..PLAIN };
    let description = Inflight { mmap_size: 1, mmap_offset: 0, queues: 1, queue_size: 1 };
    let puppet = Puppet::start(&place, offer, move |message| match message.code {
        request::GET_INFLIGHT_FD => Act::Answer(description.encode()),
        _ => Act::Normal,
    });
    let machine = connect(&place.path, &[("queues", "1")]).unwrap();
    let driver = QueueDriver::new(machine.memory.clone(), 0, QUEUE_SIZE, 0);
    let error = machine.device.start_queue(0, driver.setup(QueueState::default())).unwrap_err();
    assert_eq!(error, "queue 0: the back end refused GET_INFLIGHT_FD");
    drop(machine);
    puppet.thread.join().unwrap();
}
