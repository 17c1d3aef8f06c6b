//! Tests of queue and worker through the test kit, on a device that copies.

use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::ThreadId;

use crate::queue::{QueueError, VirtQueue, total_len};
use crate::services::Services;
use crate::testing::{Buffer, FakeHost, QueueDriver, VirtioHarness, wait_until};
use crate::virtio::{COMMON_FEATURES, F_EVENT_IDX, QueueSetup, QueueState, VirtioDevice, VirtioTraits};
use crate::worker::gather::Gather;
use crate::worker::look_out::LookOut;
use crate::worker::served::Served;
use crate::worker::{QueueHandler, QueueWorkers, Watch};

/// Copies the readable buffers of a request to its writable ones; panics on a request that starts with '!'.
struct Copier(QueueWorkers);

struct Copy;

impl QueueHandler for Copy {
    fn process(&mut self, queue: &mut VirtQueue) -> Result<(), QueueError> {
        while let Some(chain) = queue.pop()? {
            let len = total_len(chain.readable()).min(total_len(chain.writable())).min(4096);
            let mut data = vec![0; len as usize];
            chain.read(queue.memory(), 0, &mut data)?;
            assert!(data.first() != Some(&b'!'), "told to panic");
            chain.write(queue.memory(), 0, &data)?;
            queue.push(chain, len as u32)?;
        }
        Ok(())
    }
}

impl VirtioDevice for Copier {
    fn traits(&self) -> VirtioTraits {
        VirtioTraits { device_type: 42, features: COMMON_FEATURES, queue_sizes: vec![64], config_size: 0 }
    }

    fn read_config(&self, _: u32, _: &mut [u8]) {}

    fn start_queue(&self, index: u16, setup: QueueSetup) -> Result<(), String> {
        self.0.start(index, setup, Copy)
    }

    fn stop_queue(&self, index: u16) -> Option<QueueState> {
        self.0.stop(index)
    }

    fn reset(&self) {}
}

const IN: u64 = VirtioHarness::DATA;
const OUT: u64 = IN + 0x10000;

fn copier() -> (Arc<FakeHost>, VirtioHarness) {
    let host = Arc::new(FakeHost::default());
    let device = Copier(QueueWorkers::new(Services::new(host.clone())));
    (host, VirtioHarness::new(Arc::new(device), COMMON_FEATURES))
}

#[test]
fn requests_are_served_in_direct_and_indirect_chains() {
    let (_, mut machine) = copier();
    let mut queue = machine.start(0, 8);
    machine.memory().write(IN, b"hello world");
    let buffers = [Buffer::readable(IN, 5), Buffer::readable(IN + 5, 6), Buffer::writable(OUT, 64)];
    assert_eq!(queue.request(&buffers).len, 11);
    assert_eq!(machine.memory().read(OUT, 11), b"hello world");
    machine.memory().write(IN, b"HELLO");
    queue.add_indirect(&buffers);
    queue.kick();
    assert_eq!(queue.wait_used().len, 11);
    assert_eq!(machine.memory().read(OUT, 11), b"HELLO world");
}

#[test]
fn a_stopped_queue_goes_on_where_it_stood() {
    let (_, mut machine) = copier();
    let mut queue = machine.start(0, 4);
    for _ in 0..10 {
        queue.request(&[Buffer::readable(IN, 1), Buffer::writable(OUT, 1)]);
    }
    let state = machine.stop(0, &mut queue);
    assert_eq!(state, QueueState { next_avail: 10, next_used: 10 });
    queue.add(&[Buffer::readable(IN, 1), Buffer::writable(OUT, 1)]);
    machine.resume(0, &mut queue, state);
    assert_eq!(queue.wait_used().len, 1);
}

#[test]
fn a_queue_is_started_once_and_stopped_once() {
    let (_, mut machine) = copier();
    let mut queue = machine.start(0, 4);
    machine.stop(0, &mut queue);
    let host = Arc::new(FakeHost::default());
    let device = Copier(QueueWorkers::new(Services::new(host)));
    assert_eq!(device.stop_queue(0), None);
    assert_eq!(device.stop_queue(65535), None);
}

#[test]
fn a_panic_in_a_worker_fails_the_device_and_nothing_else() {
    let (host, mut machine) = copier();
    let mut queue = machine.start(0, 4);
    machine.memory().write(IN, b"!");
    queue.add(&[Buffer::readable(IN, 1), Buffer::writable(OUT, 1)]);
    queue.kick();
    wait_until("the failure", || !host.failures().is_empty());
    assert_eq!(host.failures(), ["panicked: told to panic"]);
}

#[test]
fn broken_rings_and_chains_fail_the_device_with_the_cause() {
    type Break = fn(&mut crate::testing::QueueDriver);
    let cases: [(&str, Break); 4] = [
        ("queue 0: descriptor chain 0 is malformed", |queue| {
            queue.descriptor(0, IN, 1, 1, 1);
            queue.descriptor(1, IN, 1, 1, 0);
            queue.offer(0);
        }),
        ("queue 0: descriptor chain 0 is malformed", |queue| {
            queue.descriptor(0, OUT, 1, 3, 1);
            queue.descriptor(1, IN, 1, 0, 0);
            queue.offer(0);
        }),
        ("queue 0: guest range 0x1000+0x1 is not in memory shared with devices", |queue| {
            queue.descriptor(0, 0x1000, 1, 1, 1);
            queue.descriptor(1, OUT, 1, 2, 0);
            queue.offer(0);
        }),
        ("queue 0: the queue's rings are broken", |queue| queue.set_available_index(300)),
    ];
    for (message, break_it) in cases {
        let (host, mut machine) = copier();
        let mut queue = machine.start(0, 4);
        break_it(&mut queue);
        queue.kick();
        wait_until(message, || !host.failures().is_empty());
        assert!(host.failures()[0].starts_with(message), "{:?}", host.failures());
    }
}

#[test]
fn rings_outside_memory_are_refused_when_the_queue_starts() {
    let (_, machine) = copier();
    let memory = machine.memory().region();
    let host = Arc::new(FakeHost::default());
    let device = Copier(QueueWorkers::new(Services::new(host)));
    let event = || crate::interrupt::Event::new().unwrap();
    let setup = QueueSetup {
        size: 4,
        descriptor_table: 0x1000,
        available_ring: IN,
        used_ring: OUT,
        state: QueueState::default(),
        kick: event(),
        call: crate::interrupt::Interrupt::new(event()),
        memory: vec![memory],
        features: F_EVENT_IDX,
        inflight: None,
    };
    let error = device.start_queue(0, setup).unwrap_err();
    assert_eq!(error, "queue 0: refused: the queue's rings are not in guest memory or not aligned");
}

#[test]
fn one_interrupt_is_raised_for_a_batch() {
    let (_, mut machine) = copier();
    let mut queue = machine.start(0, 64);
    let state = machine.stop(0, &mut queue);
    for _ in 0..16 {
        queue.add(&[Buffer::readable(IN, 1), Buffer::writable(OUT, 1)]);
    }
    machine.resume(0, &mut queue, state);
    let mut served = 0;
    wait_until("all requests", || {
        served += usize::from(queue.poll_used().is_some());
        served == 16
    });
    machine.stop(0, &mut queue);
    assert!(queue.interrupted(), "the batch is announced");
}

#[test]
fn a_driver_without_event_index_is_interrupted_for_requests_only_and_not_when_it_says_so() {
    let host = Arc::new(FakeHost::default());
    let device = Copier(QueueWorkers::new(Services::new(host)));
    let mut machine = VirtioHarness::new(Arc::new(device), COMMON_FEATURES & !F_EVENT_IDX);
    let mut queue = machine.start(0, 8);
    let state = machine.stop(0, &mut queue);
    assert!(!queue.interrupted(), "an idle queue interrupts nobody");
    machine.resume(0, &mut queue, state);
    queue.request(&[Buffer::readable(IN, 1), Buffer::writable(OUT, 1)]);
    queue.set_available_flags(1);
    queue.add(&[Buffer::readable(IN, 1), Buffer::writable(OUT, 1)]);
    queue.kick();
    wait_until("the request", || queue.poll_used().is_some());
    machine.stop(0, &mut queue);
    assert!(!queue.interrupted(), "VIRTQ_AVAIL_F_NO_INTERRUPT is heeded");
}

/// A device with a source that has hung up; counts how often that is reported.
struct Deserted {
    workers: QueueWorkers,
    source: UnixStream,
    reports: Arc<AtomicU32>,
}

struct Listener(UnixStream, Arc<AtomicU32>);

impl QueueHandler for Listener {
    fn process(&mut self, queue: &mut VirtQueue) -> Result<(), QueueError> {
        while let Some(chain) = queue.pop()? {
            queue.push(chain, 0)?;
        }
        Ok(())
    }

    fn sources(&self) -> Vec<BorrowedFd<'_>> {
        vec![self.0.as_fd()]
    }

    fn ready(&mut self, _: usize, _: &mut VirtQueue) -> Result<Watch, QueueError> {
        self.1.fetch_add(1, Ordering::SeqCst);
        Ok(Watch::UntilKick)
    }
}

impl VirtioDevice for Deserted {
    fn traits(&self) -> VirtioTraits {
        VirtioTraits { device_type: 42, features: COMMON_FEATURES, queue_sizes: vec![64], config_size: 0 }
    }

    fn read_config(&self, _: u32, _: &mut [u8]) {}

    fn start_queue(&self, index: u16, setup: QueueSetup) -> Result<(), String> {
        self.workers.start(index, setup, Listener(self.source.try_clone().unwrap(), self.reports.clone()))
    }

    fn stop_queue(&self, index: u16) -> Option<QueueState> {
        self.workers.stop(index)
    }

    fn reset(&self) {}
}

#[test]
fn a_source_that_has_hung_up_is_reported_with_new_requests_only() {
    let reports = Arc::new(AtomicU32::new(0));
    let workers = QueueWorkers::new(Services::new(Arc::new(FakeHost::default())));
    let source = UnixStream::pair().unwrap().0;
    let device = Deserted { workers, source, reports: reports.clone() };
    let mut machine = VirtioHarness::new(Arc::new(device), COMMON_FEATURES);
    let mut queue = machine.start(0, 8);
    for requests in 1..=100 {
        queue.request(&[Buffer::readable(IN, 1)]);
        let reports = reports.load(Ordering::SeqCst);
        // When the request is found, and when its kick is.
        assert!(reports <= 2 * requests + 1, "{reports} reports after {requests} requests");
    }
    wait_until("a report", || reports.load(Ordering::SeqCst) > 0);
    machine.stop(0, &mut queue);
}

/// Has its driver make a request available, without a kick, just after it has found the queue empty.
struct Surprised(QueueWorkers, Arc<Mutex<Surprise>>);

#[derive(Default)]
struct Surprise {
    queue: Option<QueueDriver>,
    asked: bool,
    has_work: Option<bool>,
}

struct Late(Arc<Mutex<Surprise>>);

impl QueueHandler for Late {
    fn process(&mut self, queue: &mut VirtQueue) -> Result<(), QueueError> {
        while let Some(chain) = queue.pop()? {
            queue.push(chain, 0)?;
        }
        let mut surprise = self.0.lock().unwrap();
        if std::mem::take(&mut surprise.asked) {
            let queue = surprise.queue.as_mut().unwrap();
            queue.add(&[Buffer::readable(IN, 1)]);
            queue.kick_if_wanted();
        }
        Ok(())
    }

    fn has_work(&mut self) -> Option<bool> {
        self.0.lock().unwrap().has_work
    }
}

impl VirtioDevice for Surprised {
    fn traits(&self) -> VirtioTraits {
        VirtioTraits { device_type: 42, features: COMMON_FEATURES, queue_sizes: vec![64], config_size: 0 }
    }

    fn read_config(&self, _: u32, _: &mut [u8]) {}

    fn start_queue(&self, index: u16, setup: QueueSetup) -> Result<(), String> {
        self.0.start(index, setup, Late(self.1.clone()))
    }

    fn stop_queue(&self, index: u16) -> Option<QueueState> {
        self.0.stop(index)
    }

    fn reset(&self) {}
}

#[test]
fn a_request_that_comes_while_kicks_are_off_is_served_with_the_next_look_at_the_queue() {
    for (features, has_work) in [COMMON_FEATURES, COMMON_FEATURES & !F_EVENT_IDX]
        .into_iter()
        .flat_map(|f| [(f, None), (f, Some(false))])
    {
        let surprise = Arc::new(Mutex::new(Surprise { has_work, ..Surprise::default() }));
        let workers = QueueWorkers::new(Services::new(Arc::new(FakeHost::default())));
        let mut machine = VirtioHarness::new(Arc::new(Surprised(workers, surprise.clone())), features);
        let queue = machine.start(0, 8);
        surprise.lock().unwrap().queue = Some(queue);
        for _ in 0..100 {
            {
                let mut surprise = surprise.lock().unwrap();
                surprise.asked = true;
                // One for nothing, as when requests were found before their kick was.
                surprise.queue.as_ref().unwrap().kick();
            }
            wait_until("the request", || {
                surprise.lock().unwrap().queue.as_mut().unwrap().poll_used().is_some()
            });
        }
    }
}

/// A device whose queue the test itself serves.
#[derive(Default)]
struct Given(Mutex<Option<QueueSetup>>);

impl VirtioDevice for Given {
    fn traits(&self) -> VirtioTraits {
        VirtioTraits { device_type: 42, features: COMMON_FEATURES, queue_sizes: vec![64], config_size: 0 }
    }

    fn read_config(&self, _: u32, _: &mut [u8]) {}

    fn start_queue(&self, _: u16, setup: QueueSetup) -> Result<(), String> {
        *self.0.lock().unwrap() = Some(setup);
        Ok(())
    }

    fn stop_queue(&self, _: u16) -> Option<QueueState> {
        None
    }

    fn reset(&self) {}
}

/// Serves a request at a time, and looks each time whether the driver has been interrupted.
struct OneByOne {
    driver: Arc<Mutex<QueueDriver>>,
    interrupted: Arc<Mutex<Vec<bool>>>,
}

impl QueueHandler for OneByOne {
    fn process(&mut self, queue: &mut VirtQueue) -> Result<(), QueueError> {
        self.interrupted.lock().unwrap().push(self.driver.lock().unwrap().interrupted());
        match queue.pop()? {
            Some(chain) => queue.push(chain, 0),
            None => Ok(()),
        }
    }

    fn has_work(&mut self) -> Option<bool> {
        Some(false)
    }
}

#[test]
fn requests_that_come_soon_share_an_interrupt_where_that_is_quicker() {
    for (gather, interrupted) in
        [(Gather::holding(), [false, false, false]), (Gather::new(), [false, true, true])]
    {
        let device = Arc::new(Given::default());
        let mut machine = VirtioHarness::new(device.clone(), COMMON_FEATURES & !F_EVENT_IDX);
        let mut driver = machine.start(0, 8);
        for _ in 0..3 {
            driver.add(&[Buffer::readable(IN, 1)]);
        }
        let setup = device.0.lock().unwrap().take().unwrap();
        let driver = Arc::new(Mutex::new(driver));
        let seen = Arc::<Mutex<Vec<bool>>>::default();
        let handler = OneByOne { driver: driver.clone(), interrupted: seen.clone() };
        let mut served = Served::new(0, setup, Box::new(handler)).unwrap();
        (served.look_out, served.gather) = (LookOut::on(2), gather);
        served.drain(&AtomicBool::new(false)).unwrap();
        assert_eq!(served.state().next_used, 3);
        assert_eq!(seen.lock().unwrap()[..3], interrupted);
        assert!(driver.lock().unwrap().interrupted(), "the last are told of");
    }
}

/// Takes nothing, however much its source has, as long as there are less than two buffers.
struct Demanding(UnixStream, Arc<AtomicU32>);

impl QueueHandler for Demanding {
    fn process(&mut self, _: &mut VirtQueue) -> Result<(), QueueError> {
        Ok(())
    }

    fn sources(&self) -> Vec<BorrowedFd<'_>> {
        vec![self.0.as_fd()]
    }

    fn ready(&mut self, _: usize, queue: &mut VirtQueue) -> Result<Watch, QueueError> {
        self.1.fetch_add(1, Ordering::SeqCst);
        let Some(first) = queue.pop()? else { return Ok(Watch::UntilKick) };
        let Some(second) = queue.pop()? else {
            queue.unpop(first);
            return Ok(Watch::UntilKick);
        };
        let mut byte = [0];
        self.0.read_exact(&mut byte)?;
        queue.push(first, 0)?;
        queue.push(second, 0)?;
        Ok(Watch::Keep)
    }
}

#[test]
fn a_source_that_waits_for_more_buffers_is_left_alone_although_there_are_some() {
    let (mut far, near) = UnixStream::pair().unwrap();
    let calls = Arc::<AtomicU32>::default();
    let counted = calls.clone();
    let workers = QueueWorkers::new(Services::new(Arc::new(FakeHost::default())));
    let mut machine = VirtioHarness::new(
        Arc::new(Serving(workers, move || Demanding(near.try_clone().unwrap(), counted.clone()))),
        COMMON_FEATURES,
    );
    let mut queue = machine.start(0, 8);
    for round in 1..=50 {
        queue.add(&REQUEST);
        queue.kick_if_wanted();
        far.write_all(b"a").unwrap();
        wait_until("a look at the source", || calls.load(Ordering::SeqCst) > 0);
        queue.add(&REQUEST);
        queue.kick_if_wanted();
        queue.wait_used();
        queue.wait_used();
        let calls = calls.load(Ordering::SeqCst);
        assert!(calls <= 5 * round, "{calls} calls in {round} rounds");
    }
}

/// Completes its requests; the driver can wait for the news.
struct Unhurried;

impl QueueHandler for Unhurried {
    fn process(&mut self, queue: &mut VirtQueue) -> Result<(), QueueError> {
        while let Some(chain) = queue.pop()? {
            queue.push(chain, 0)?;
        }
        Ok(())
    }

    fn interrupts_can_wait(&self) -> bool {
        true
    }
}

#[test]
fn an_interrupt_that_can_wait_does_so_for_a_few_turns_of_a_shared_thread() {
    let device = Arc::new(Given::default());
    let mut machine = VirtioHarness::new(device.clone(), COMMON_FEATURES);
    let mut driver = machine.start(0, 8);
    let setup = device.0.lock().unwrap().take().unwrap();
    let mut served = Served::new(0, setup, Box::new(Unhurried)).unwrap();
    let mut serve = |served: &mut Served, alone| {
        served.alone = alone;
        driver.add(&[Buffer::readable(IN, 1)]);
        served.drain(&AtomicBool::new(false)).unwrap();
        served.rest().unwrap();
        driver.poll_used().unwrap();
        driver.interrupted()
    };
    assert!(serve(&mut served, true), "there is nothing to wait for");
    assert!(!serve(&mut served, false) && served.holds_back());
    served.announce().unwrap();
    assert!(!served.holds_back());
    let at_once = (1..20).position(|_| serve(&mut served, false));
    assert_eq!(at_once, Some(8), "a busy thread does not hold it back for ever");
}

/// Serves its queues on one thread, each with a handler that is made for it.
struct Serving<F>(QueueWorkers, F);

/// Notes on which thread it is served, and fails or panics when its request says so.
struct Half(Arc<Mutex<Vec<ThreadId>>>);

impl QueueHandler for Half {
    fn process(&mut self, queue: &mut VirtQueue) -> Result<(), QueueError> {
        let Some(chain) = queue.pop()? else { return Ok(()) };
        self.0.lock().unwrap().push(std::thread::current().id());
        let mut word = [0];
        chain.read(queue.memory(), 0, &mut word)?;
        match word {
            [b'!'] => panic!("told to panic"),
            [b'?'] => Err(QueueError::Broken("told to fail".into())),
            _ => queue.push(chain, 0),
        }
    }
}

impl<H: QueueHandler, F: Fn() -> H + Send + Sync> VirtioDevice for Serving<F> {
    fn traits(&self) -> VirtioTraits {
        VirtioTraits { device_type: 42, features: COMMON_FEATURES, queue_sizes: vec![64; 2], config_size: 0 }
    }

    fn read_config(&self, _: u32, _: &mut [u8]) {}

    fn start_queue(&self, index: u16, setup: QueueSetup) -> Result<(), String> {
        self.0.start_on(0, index, setup, (self.1)())
    }

    fn stop_queue(&self, index: u16) -> Option<QueueState> {
        self.0.stop(index)
    }

    fn reset(&self) {}
}

type Threads = Arc<Mutex<Vec<ThreadId>>>;

fn pair() -> (Arc<FakeHost>, Arc<dyn VirtioDevice>, VirtioHarness, Threads) {
    let (host, threads) = (Arc::new(FakeHost::default()), Threads::default());
    let (workers, noted) = (QueueWorkers::new(Services::new(host.clone())), threads.clone());
    let device: Arc<dyn VirtioDevice> = Arc::new(Serving(workers, move || Half(noted.clone())));
    (host, device.clone(), VirtioHarness::new(device, COMMON_FEATURES), threads)
}

const REQUEST: [Buffer; 1] = [Buffer::readable(IN, 1)];

#[test]
fn queues_that_share_a_thread_are_both_served_and_stop_one_by_one() {
    let (_, _, mut machine, threads) = pair();
    let (mut first, mut second) = (machine.start(0, 8), machine.start(1, 8));
    for _ in 0..10 {
        first.add(&REQUEST);
        first.add(&REQUEST);
        second.add(&REQUEST);
        first.kick();
        second.kick();
        first.wait_used();
        second.wait_used();
        first.wait_used();
    }
    assert_eq!(machine.stop(0, &mut first), QueueState { next_avail: 20, next_used: 20 });
    second.request(&REQUEST);
    let threads = threads.lock().unwrap().clone();
    assert_eq!(threads, vec![threads[0]; 31]);
    let state = machine.stop(1, &mut second);
    assert_eq!(state, QueueState { next_avail: 11, next_used: 11 });
    machine.resume(0, &mut first, QueueState { next_avail: 20, next_used: 20 });
    first.request(&REQUEST);
}

#[test]
fn a_queue_that_breaks_leaves_the_others_of_its_thread_alone() {
    let (host, _, mut machine, _) = pair();
    let (mut first, mut second) = (machine.start(0, 8), machine.start(1, 8));
    machine.memory().write(IN, b"?");
    first.add(&REQUEST);
    first.kick();
    wait_until("the failure", || !host.failures().is_empty());
    assert_eq!(host.failures(), ["queue 0: the queue's rings are broken: told to fail"]);
    machine.memory().write(IN, b".");
    second.request(&REQUEST);
    assert_eq!(machine.stop(0, &mut first), QueueState { next_avail: 1, next_used: 0 });
    assert_eq!(machine.stop(1, &mut second), QueueState { next_avail: 1, next_used: 1 });
}

#[test]
fn a_panic_ends_all_queues_of_its_thread_and_they_can_be_started_again() {
    let (host, device, mut machine, _) = pair();
    let (mut first, _second) = (machine.start(0, 8), machine.start(1, 8));
    machine.memory().write(IN, b"!");
    first.add(&REQUEST);
    first.kick();
    wait_until("the failure", || !host.failures().is_empty());
    assert_eq!(host.failures(), ["panicked: told to panic"]);
    assert_eq!([0, 1].map(|index| device.stop_queue(index)), [None, None]);
    machine.memory().write(IN, b".");
    machine.start(0, 8).request(&REQUEST);
}

/// Leaves all buffers in its queue until something arrives on its source, as receive queues do.
struct Patient(UnixStream);

impl QueueHandler for Patient {
    fn process(&mut self, _: &mut VirtQueue) -> Result<(), QueueError> {
        Ok(())
    }

    fn asks_for_kicks(&self) -> bool {
        true
    }

    fn sources(&self) -> Vec<BorrowedFd<'_>> {
        vec![self.0.as_fd()]
    }

    fn ready(&mut self, _: usize, queue: &mut VirtQueue) -> Result<Watch, QueueError> {
        loop {
            if let Some(chain) = queue.pop()? {
                let mut byte = [0];
                if self.0.read(&mut byte).is_err() {
                    queue.unpop(chain);
                    return Ok(Watch::Keep);
                }
                queue.push(chain, 0)?;
            } else if !queue.enable_kicks()? {
                return Ok(Watch::UntilKick);
            }
        }
    }
}

#[test]
fn a_handler_that_asks_for_kicks_gets_none_while_it_has_buffers_and_one_when_it_lacks_them() {
    for features in [COMMON_FEATURES, COMMON_FEATURES & !F_EVENT_IDX] {
        let (mut far, near) = UnixStream::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        let workers = QueueWorkers::new(Services::new(Arc::new(FakeHost::default())));
        let mut machine = VirtioHarness::new(
            Arc::new(Serving(workers, move || Patient(near.try_clone().unwrap()))),
            features,
        );
        let mut queue = machine.start(0, 8);
        for _ in 0..20 {
            queue.add(&REQUEST);
            far.write_all(b"a").unwrap();
            queue.kick_if_wanted();
            queue.wait_used();
            queue.add(&REQUEST);
            far.write_all(b"b").unwrap();
            queue.kick_if_wanted();
            queue.wait_used();
        }
        let state = machine.stop(0, &mut queue);
        for _ in 0..4 {
            queue.add(&REQUEST);
        }
        queue.kick_if_wanted();
        machine.resume(0, &mut queue, state);
        far.write_all(b"c").unwrap();
        queue.wait_used();
        queue.add(&REQUEST);
        assert!(!queue.kick_if_wanted(), "it has buffers left");
        far.write_all(b"defgh").unwrap();
        for _ in 0..4 {
            queue.wait_used();
        }
        machine.stop(0, &mut queue);
        queue.add(&REQUEST);
        assert!(queue.kick_if_wanted(), "it waits for a buffer");
    }
}
