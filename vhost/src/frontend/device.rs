//! A device that another program serves, as the transport sees it.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use gvmm_plugin_api::host::Host;
use gvmm_plugin_api::metrics::Metric;
use gvmm_plugin_api::virtio::{QueueSetup, QueueState, VirtioDevice, VirtioTraits};

use super::bring_up;
use super::connector::{Connector, Told};
use super::driver::Driver;
use super::link::{Link, Watch};
use super::options::Settings;
use super::peer::{Peer, PeerError};
use super::shape::Shape;
use crate::protocol::features::{RESET_DEVICE, STATUS};
use crate::protocol::payload::Config;
use crate::protocol::{Channel, request};

/// Pause between attempts to reach a back end that is being started.
const START_PAUSE: Duration = Duration::from_millis(20);

/// A device whose back end is another program. Dropping it ends the connection.
pub struct RemoteDevice {
    link: Arc<Link>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl RemoteDevice {
    /// Connects to a back end, which may still be starting, and finds out what it serves.
    ///
    /// # Errors
    ///
    /// Why there is no such device: the way to the back end and what is wrong with it.
    pub fn connect(
        settings: Settings,
        mut connector: Box<dyn Connector>,
        host: Arc<dyn Host>,
    ) -> Result<Self, String> {
        let Contact { peer, watch, shape, config } = first_contact(&settings, &mut *connector)?;
        let link = Link::new(settings, host, shape, config, peer);
        let link = Arc::new(link.map_err(|e| format!("cannot make an eventfd: {e}"))?);
        let watched = link.clone();
        let thread = std::thread::Builder::new().name("vhost-user".to_owned());
        let thread = thread.spawn(move || watched.run(connector, watch));
        let thread = thread.map_err(|e| format!("cannot start a thread: {e}"))?;
        Ok(Self { link, thread: Mutex::new(Some(thread)) })
    }
}

/// A back end with which a handshake has been made, and what it serves.
struct Contact {
    peer: Peer,
    watch: Watch,
    shape: Shape,
    config: Vec<u8>,
}

impl Contact {
    fn new(channel: Channel, settings: &Settings, told: Option<&Told>) -> Result<Self, PeerError> {
        let peer = Peer::negotiate(channel, settings.timeout)?;
        let (shape, config) = Shape::of(&peer, settings, told)?;
        let watch = Watch::of(&peer)?;
        Ok(Self { peer, watch, shape, config })
    }
}

/// The first handshake, repeated whole until it succeeds or the time is over.
fn first_contact(settings: &Settings, connector: &mut dyn Connector) -> Result<Contact, String> {
    let begun = Instant::now();
    loop {
        let error = match connector.connect() {
            Err(error) => error,
            Ok(channel) => match Contact::new(channel, settings, connector.told()?.as_ref()) {
                Ok(contact) => return Ok(contact),
                // Another try would find the same.
                Err(error) if error.is_refusal() || matches!(error, PeerError::Unfit(_)) => {
                    return Err(error.to_string());
                }
                Err(error) => error.to_string(),
            },
        };
        connector.lost();
        if begun.elapsed() >= settings.wait || !connector.can_return() {
            return Err(error);
        }
        std::thread::sleep(START_PAUSE);
    }
}

impl VirtioDevice for RemoteDevice {
    fn traits(&self) -> VirtioTraits {
        self.link.shape.traits.clone()
    }

    fn read_config(&self, offset: u32, data: &mut [u8]) {
        let config = self.link.config();
        let fields = config.get(offset as usize..).unwrap_or_default();
        data.iter_mut().zip(fields).for_each(|(byte, field)| *byte = *field);
    }

    /// Waits for the back end, since what the driver does next may rely on it; not longer than the time allowed.
    fn write_config(&self, offset: u32, data: &[u8]) {
        if !self.link.shape.passes_config() {
            return;
        }
        let mut state = self.link.lock();
        self.link.note_written(&mut state, offset, data);
        let config = Config { offset, flags: 0, content: data.to_vec() };
        let written = self.link.with_peer(&mut state, |peer, _| {
            peer.tell(request::SET_CONFIG, &config, &[])?;
            self.link.refresh_config(peer)
        });
        if let Err(error) = written {
            self.link.host.log(4, "vhost-user", &error);
        }
    }

    fn start_queue(&self, index: u16, setup: QueueSetup) -> Result<(), String> {
        let mut state = self.link.lock();
        let state = &mut *state;
        let named = |error: String| format!("queue {index}: {error}");
        let first = state.driver.is_none();
        let driver = match &mut state.driver {
            Some(driver) => driver,
            None => state.driver.insert(Driver::new(&setup).map_err(named)?),
        };
        driver.add(index, setup).map_err(named)?;
        let handed = self.link.with_peer(state, |peer, state| self.link.hand_over(peer, state, index, first));
        match handed {
            // Without a back end the queue waits for one.
            Ok(_) => Ok(()),
            Err(error) => {
                if let Some(driver) = &mut state.driver {
                    driver.queues.remove(&index);
                }
                if first {
                    state.driver = None;
                }
                Err(named(error))
            }
        }
    }

    fn stop_queue(&self, index: u16) -> Option<QueueState> {
        let mut state = self.link.lock();
        let running = state.driver.as_ref()?.queues.get(&index)?.running;
        let base = match running {
            true => {
                self.link.with_peer(&mut state, |peer, _| bring_up::take_back(peer, index)).ok().flatten()
            }
            false => None,
        };
        let driver = state.driver.as_mut()?;
        let queue = driver.queues.remove(&index)?;
        let stands = driver.state_of(&queue);
        Some(QueueState { next_avail: base.unwrap_or(stands.next_avail), ..stands })
    }

    fn reset(&self) {
        let mut state = self.link.lock();
        self.link.forget(&mut state);
        let reset = self.link.with_peer(&mut state, |peer, _| {
            if peer.has(RESET_DEVICE) {
                peer.tell(request::RESET_DEVICE, &(), &[])?;
            } else if peer.has(STATUS) {
                bring_up::set_status(peer, 0)?;
            }
            self.link.refresh_config(peer)
        });
        if let Err(error) = reset {
            self.link.host.log(2, "vhost-user", &error);
        }
    }

    fn metrics(&self) -> Vec<Metric> {
        let counters = &self.link.counters;
        vec![
            Metric::new("connected", self.link.is_connected().into()),
            Metric::new("connections", counters.connections.get()),
            Metric::new("connections_lost", counters.lost.get()),
            Metric::new("failed_attempts", counters.failed_attempts.get()),
            Metric::new("resets_needed", counters.resets_needed.get()),
        ]
    }
}

impl Drop for RemoteDevice {
    fn drop(&mut self) {
        self.link.stop();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // A panic of the thread has been shown by the panic hook.
            let _ = thread.join();
        }
    }
}
