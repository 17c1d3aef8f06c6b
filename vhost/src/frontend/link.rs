//! The link to a back end: what is known of both sides, and the thread that mends it when it breaks.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use gvmm_plugin_api::host::Host;
use gvmm_plugin_api::interrupt::Event;
use gvmm_plugin_api::metrics::Counter;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::bring_up::{self, Notes};
use super::connector::Connector;
use super::driver::Driver;
use super::options::Settings;
use super::peer::{Peer, PeerError};
use super::shape::Shape;
use crate::protocol::features::F_IN_ORDER;
use crate::protocol::payload::{Config, Payload};
use crate::protocol::{Channel, ChannelError, Deadline, backend_request, flag, request};

/// A back end that lasted no longer than this counts as one that ended at once.
const AT_ONCE: Duration = Duration::from_millis(250);
/// Back ends in a row that ended at once, after which what is in flight is blamed for it.
const MAX_AT_ONCE: u32 = 16;
/// Attempts in a row that may fail before that is told: whoever starts the back end again takes a moment.
const QUIET_ATTEMPTS: u32 = 4;
/// The first pause between attempts to connect; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
/// The longest pause between attempts to connect.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Both sides of a device. The back end may be away; what the driver does meanwhile is told to the next one.
pub(super) struct Link {
    pub(super) settings: Settings,
    pub(super) host: Arc<dyn Host>,
    pub(super) shape: Shape,
    state: Mutex<State>,
    /// Configuration space as it was last read, since vCPUs must not wait for a back end.
    config: Mutex<Vec<u8>>,
    /// Signalled by back ends when a ring is broken.
    errors: Event,
    /// Whether the host has been told of a broken ring since the reset.
    broken: AtomicBool,
    wake: Event,
    stopping: AtomicBool,
    connected: AtomicBool,
    pub(super) counters: Counters,
}

/// What statistics show.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) connections: Counter,
    pub(super) lost: Counter,
    pub(super) failed_attempts: Counter,
    pub(super) resets_needed: Counter,
}

/// What changes under the lock. It is held over exchanges with the back end, each of which ends within the time allowed.
#[derive(Default)]
pub(super) struct State {
    pub(super) peer: Option<Peer>,
    pub(super) driver: Option<Driver>,
    notes: Option<Notes>,
    /// What the driver wrote to configuration space since the reset, by offset and length, for the next back end.
    written: BTreeMap<(u32, usize), Vec<u8>>,
}

/// What the thread watches of a connection.
pub(super) struct Watch {
    socket: OwnedFd,
    requests: Option<Channel>,
    since: Instant,
}

impl Watch {
    pub(super) fn of(peer: &Peer) -> Result<Self, PeerError> {
        let requests = peer.open_requests()?;
        let socket = peer.socket();
        let socket = socket.map_err(|e| PeerError::Unfit(format!("cannot copy a descriptor: {e}")))?;
        Ok(Self { socket, requests, since: Instant::now() })
    }
}

enum Found {
    Stopping,
    Lost,
}

impl Link {
    pub(super) fn new(
        settings: Settings,
        host: Arc<dyn Host>,
        shape: Shape,
        config: Vec<u8>,
        peer: Peer,
    ) -> std::io::Result<Self> {
        let counters = Counters::default();
        counters.connections.add(1);
        Ok(Self {
            settings,
            host,
            shape,
            state: Mutex::new(State { peer: Some(peer), ..State::default() }),
            config: Mutex::new(config),
            errors: Event::new()?,
            broken: AtomicBool::new(false),
            wake: Event::new()?,
            stopping: AtomicBool::new(false),
            connected: AtomicBool::new(true),
            counters,
        })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn config(&self) -> MutexGuard<'_, Vec<u8>> {
        self.config.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the thread.
    pub(super) fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.wake.signal();
    }

    /// Does something with the back end, if there is one. When that fails the back end is lost, except where it refused,
    /// which is the error.
    pub(super) fn with_peer<T>(
        &self,
        state: &mut State,
        body: impl FnOnce(&Peer, &mut State) -> Result<T, PeerError>,
    ) -> Result<Option<T>, String> {
        let Some(peer) = state.peer.take() else { return Ok(None) };
        let done = body(&peer, state);
        match done {
            Ok(value) => {
                state.peer = Some(peer);
                Ok(Some(value))
            }
            Err(error) if error.is_refusal() => {
                state.peer = Some(peer);
                Err(error.to_string())
            }
            Err(error) => {
                self.lose(state, &error.to_string());
                self.wake.signal();
                Ok(None)
            }
        }
    }

    /// Hands queues over: those of a driver that has just begun with everything that comes before.
    pub(super) fn hand_over(
        &self,
        peer: &Peer,
        state: &mut State,
        index: u16,
        first: bool,
    ) -> Result<(), PeerError> {
        let Some(driver) = &mut state.driver else { return Ok(()) };
        if first {
            bring_up::device(peer, &self.shape, driver, &mut state.notes)?;
        }
        bring_up::queue(peer, driver, index, &self.errors)
    }

    /// The driver has reset the device: a back end that comes knows nothing of what was.
    pub(super) fn forget(&self, state: &mut State) {
        state.driver = None;
        state.notes = None;
        state.written.clear();
        self.errors.take();
        self.broken.store(false, Ordering::Release);
        // Errors are watched again.
        self.wake.signal();
    }

    /// Keeps what the driver writes to configuration space.
    pub(super) fn note_written(&self, state: &mut State, offset: u32, data: &[u8]) {
        state.written.insert((offset, data.len()), data.to_vec());
    }

    /// Reads configuration space anew; whether it has changed.
    pub(super) fn refresh_config(&self, peer: &Peer) -> Result<bool, PeerError> {
        let Some(new) = self.shape.config(peer)? else { return Ok(false) };
        let mut config = self.config();
        let changed = *config != new;
        *config = new;
        Ok(changed)
    }

    /// Whether a back end serves the device; without waiting for one that is silent.
    pub(super) fn is_connected(&self) -> bool {
        self.connected.load(Ordering::Relaxed)
    }

    /// The back end is gone.
    fn lose(&self, state: &mut State, why: &str) {
        state.peer = None;
        self.connected.store(false, Ordering::Relaxed);
        self.counters.lost.add(1);
        self.host.log(2, "vhost-user", &format!("the back end is lost: {why}"));
        self.note_loss(state);
    }

    /// Decides where the queues that a back end had are taken up.
    fn note_loss(&self, state: &mut State) {
        let Some(driver) = &mut state.driver else { return };
        let replayed = state.notes.is_some() || self.settings.in_order || driver.features & F_IN_ORDER != 0;
        let unknown = driver.lose(replayed);
        if !unknown.is_empty() {
            self.counters.resets_needed.add(1);
            self.host.device_failed(&format!(
                "the back end was lost with requests in flight in queues {unknown:?} and keeps no notes of them \
                 (protocol feature INFLIGHT_SHMFD): the driver has to reset the device"
            ));
        }
    }

    /// Watches the link, and mends it when it breaks, until it is told to stop.
    pub(super) fn run(&self, mut connector: Box<dyn Connector>, first: Watch) {
        let mut watch = first;
        let mut at_once = 0_u32;
        while let Found::Lost = self.watch(&mut watch) {
            let lasted = watch.since.elapsed();
            // Closes the connection: many a back end has time for another only then.
            drop(watch);
            connector.lost();
            if !connector.can_return() {
                self.host.device_failed("the back end has gone and cannot return");
                return;
            }
            at_once = if lasted < AT_ONCE { at_once + 1 } else { 0 };
            if at_once > 0 && at_once.is_multiple_of(MAX_AT_ONCE) {
                self.blame_requests();
            }
            match self.mend(&mut *connector, at_once) {
                Some(mended) => watch = mended,
                None => return,
            }
        }
    }

    /// One back end after the other ends as soon as it has the requests in flight: no further one gets them.
    fn blame_requests(&self) {
        let mut state = self.lock();
        if let Some(driver) = &mut state.driver
            && !driver.needs_reset()
        {
            driver.give_up();
            self.counters.resets_needed.add(1);
            self.host.device_failed(&format!(
                "{MAX_AT_ONCE} back ends in a row ended as soon as they had started: the driver has to reset the device"
            ));
        }
    }

    fn watch(&self, watch: &mut Watch) -> Found {
        loop {
            let heartbeat = self.settings.heartbeat;
            let ready = match self.wait(watch, heartbeat) {
                Ok(ready) => ready,
                Err(errno) => {
                    self.lose(&mut self.lock(), &format!("cannot wait for it: {errno}"));
                    return Found::Lost;
                }
            };
            if self.stopping.load(Ordering::Acquire) {
                return Found::Stopping;
            }
            if ready.requests {
                self.serve_request(watch);
            }
            if ready.errors && !self.broken.swap(true, Ordering::AcqRel) {
                self.host.device_failed("the back end reports that a queue is broken");
            }
            let mut state = self.lock();
            if ready.gone && state.peer.is_some() {
                self.lose(&mut state, "it closed the connection");
            } else if ready.nothing {
                // A back end that answers this question is alive; what it answers is known.
                let asked = self.with_peer(&mut state, |peer, _| peer.ask::<u64>(request::GET_FEATURES, &()));
                drop(asked);
            }
            if state.peer.is_none() {
                return Found::Lost;
            }
        }
    }

    fn wait(&self, watch: &Watch, time: Option<Duration>) -> Result<Ready, Errno> {
        // Once is enough until the reset: a back end may signal for ever.
        let broken = self.broken.load(Ordering::Acquire);
        let errors = if broken { PollFlags::empty() } else { PollFlags::POLLIN };
        let mut fds = vec![
            PollFd::new(self.wake.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.errors.as_fd(), errors),
            // For its end, not for input: answers are for whoever has asked.
            PollFd::new(watch.socket.as_fd(), PollFlags::empty()),
        ];
        fds.extend(watch.requests.as_ref().map(|channel| PollFd::new(channel.as_fd(), PollFlags::POLLIN)));
        let millis = time.and_then(|time| i32::try_from(time.as_millis()).ok());
        let timeout = millis.and_then(|ms| PollTimeout::try_from(ms).ok()).unwrap_or(PollTimeout::NONE);
        let count = loop {
            match poll(&mut fds, timeout) {
                Err(Errno::EINTR) => {}
                other => break other?,
            }
        };
        let set = |at: usize| fds.get(at).and_then(PollFd::any).unwrap_or(false);
        let ready = Ready { errors: set(1), gone: set(2), requests: set(3), nothing: count == 0 };
        self.wake.take();
        Ok(ready)
    }

    /// Answers a request of the back end.
    fn serve_request(&self, watch: &mut Watch) {
        let Some(channel) = &watch.requests else { return };
        let deadline = Deadline::after(self.settings.timeout);
        let served = channel.receive(deadline).and_then(|message| {
            let known = message.code == backend_request::CONFIG_CHANGE && !message.is_reply();
            if message.needs_reply() {
                let body = u64::from(!known).encode();
                channel.send(message.code, flag::REPLY, &body, &[], deadline)?;
            }
            Ok(known)
        });
        match served {
            // Answered first: a back end that waits for that could not tell its configuration.
            Ok(true) => self.config_changed(),
            Ok(false) => {}
            Err(error) => {
                if !matches!(error, ChannelError::Closed) {
                    self.host.log(2, "vhost-user", &format!("requests of the back end: {error}"));
                }
                watch.requests = None;
            }
        }
    }

    fn config_changed(&self) {
        let read = self.with_peer(&mut self.lock(), |peer, _| self.refresh_config(peer));
        match read {
            Ok(Some(true)) => self.host.config_changed(),
            Ok(_) => {}
            Err(error) => self.host.log(2, "vhost-user", &error),
        }
    }

    /// Connects until a back end serves the device again; `None` when the link is to stop.
    fn mend(&self, connector: &mut dyn Connector, at_once: u32) -> Option<Watch> {
        let mut failures = at_once;
        loop {
            if failures > 0 {
                self.pause(failures - 1);
            }
            if self.stopping.load(Ordering::Acquire) {
                return None;
            }
            match self.connect_again(connector) {
                Ok(watch) => {
                    self.host.log(3, "vhost-user", "the back end is back");
                    return Some(watch);
                }
                Err(error) => {
                    connector.lost();
                    self.counters.failed_attempts.add(1);
                    failures = failures.saturating_add(1);
                    // Ever more rarely: a back end may be away for days.
                    if failures >= QUIET_ATTEMPTS && failures.is_power_of_two() {
                        self.host.log(
                            2,
                            "vhost-user",
                            &format!("no back end yet, attempt {failures}: {error}"),
                        );
                    }
                }
            }
        }
    }

    /// Sleeps before another attempt, or until the link is to stop.
    fn pause(&self, attempt: u32) {
        let pause = FIRST_PAUSE.saturating_mul(1 << attempt.min(16)).min(LONGEST_PAUSE);
        let end = Instant::now() + pause;
        while !self.stopping.load(Ordering::Acquire) {
            let left = end.saturating_duration_since(Instant::now());
            // At most a second.
            let timeout = PollTimeout::try_from(left.as_millis() as i32).unwrap_or(PollTimeout::ZERO);
            if left.as_millis() == 0 {
                return;
            }
            let mut fds = [PollFd::new(self.wake.as_fd(), PollFlags::POLLIN)];
            // A failure to wait is a short pause.
            let _ = poll(&mut fds, timeout);
            self.wake.take();
        }
    }

    /// One attempt, the whole handshake.
    fn connect_again(&self, connector: &mut dyn Connector) -> Result<Watch, String> {
        let channel = connector.connect()?;
        let features = self.lock().driver.as_ref().map(|driver| driver.features);
        let agreed = Peer::negotiate(channel, self.settings.timeout).and_then(|peer| {
            self.shape.check(&peer, features)?;
            let watch = Watch::of(&peer)?;
            Ok((peer, watch))
        });
        let (peer, watch) = agreed.map_err(|e| e.to_string())?;
        let mut state = self.lock();
        // The driver may have done anything since; the peer is checked against what holds now.
        let features = state.driver.as_ref().map(|driver| driver.features);
        let taken = self.shape.check(&peer, features).and_then(|()| self.take_up(&peer, &mut state));
        match taken {
            Ok(changed) => {
                state.peer = Some(peer);
                self.connected.store(true, Ordering::Relaxed);
                self.counters.connections.add(1);
                drop(state);
                if changed {
                    self.host.config_changed();
                }
                Ok(watch)
            }
            Err(error) => {
                self.note_loss(&mut state);
                Err(error.to_string())
            }
        }
    }

    /// Tells a back end that has come everything; whether the configuration is another.
    fn take_up(&self, peer: &Peer, state: &mut State) -> Result<bool, PeerError> {
        for ((offset, _), content) in &state.written {
            let config = Config { offset: *offset, flags: 0, content: content.clone() };
            peer.tell(request::SET_CONFIG, &config, &[])?;
        }
        let changed = self.refresh_config(peer)?;
        let indexes: Vec<u16> = match &state.driver {
            Some(driver) if !driver.needs_reset() => driver.queues.keys().copied().collect(),
            _ => Vec::new(),
        };
        let mut first = true;
        for index in indexes {
            self.hand_over(peer, state, index, std::mem::take(&mut first))?;
        }
        Ok(changed)
    }
}

/// What of the things watched is ready.
struct Ready {
    errors: bool,
    gone: bool,
    requests: bool,
    nothing: bool,
}
