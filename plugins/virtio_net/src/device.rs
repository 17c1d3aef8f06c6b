//! The network card behind the plugin interface.
#![forbid(unsafe_code)]

use std::sync::Arc;

use gvmm_plugin_api::metrics::Metric;
use gvmm_plugin_api::queue::{QueueError, VirtQueue};
use gvmm_plugin_api::services::Services;
use gvmm_plugin_api::tracing::info;
use gvmm_plugin_api::virtio::{COMMON_FEATURES, QueueSetup, QueueState, VirtioDevice, VirtioTraits};
use gvmm_plugin_api::worker::{QueueHandler, QueueWorkers};

use crate::Options;
use crate::backend::packet::PacketPort;
use crate::backend::passt;
use crate::backend::redial::Redialer;
use crate::backend::stream::StreamLink;
use crate::backend::tap::Tap;
use crate::backend::{Backend, BackendError, Choice};
use crate::card::Card;
use crate::config::{self, CONFIG_SIZE, Config, DEVICE_TYPE, GUEST_OFFLOADS, HOST_OFFLOADS, Role};
use crate::control::Control;
use crate::filter::Filter;
use crate::mac::Mac;
use crate::receive::{PacketReceiver, StreamReceiver};
use crate::transmit::{PacketOutlet, StreamOutlet, Transmitter};

/// Entries of the control queue, on which drivers have one request at a time.
const CONTROL_QUEUE_SIZE: u16 = 64;

/// Why a card cannot be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CreateError {
    #[error(
        "option 'mac': '{0}' is not an address of a card, which looks like 52:54:00:12:34:56 and has an even first byte"
    )]
    Mac(String),
    #[error("option 'queue-size': {given} is not a power of two; {below} and {above} are")]
    QueueSize { given: u16, below: u16, above: u16 },
    #[error(transparent)]
    Backend(#[from] BackendError),
}

/// The back end as the queues use it.
enum Link {
    Packets { ports: Vec<Arc<PacketPort>>, tap: Option<Arc<Tap>> },
    Stream { link: Arc<StreamLink>, _redialer: Option<Redialer> },
}

/// A virtio network card.
pub(crate) struct NetDevice {
    card: Arc<Card>,
    link: Link,
    /// Address at power-on; the driver may set another one.
    mac: Mac,
    mtu: Option<u16>,
    speed: Option<u32>,
    pairs: u16,
    queue_size: u16,
    features: u64,
    workers: QueueWorkers,
}

impl NetDevice {
    /// A card on the back end that the options name.
    pub(crate) fn new(options: &Options, services: Services) -> Result<Self, CreateError> {
        let queue_size = options.queue_size;
        if !queue_size.is_power_of_two() {
            let below = 1 << queue_size.ilog2();
            return Err(CreateError::QueueSize { given: queue_size, below, above: below << 1 });
        }
        let given = options.mac.as_deref();
        let given = given.map(|text| Mac::parse(text).ok_or_else(|| CreateError::Mac(text.to_owned())));
        let given = given.transpose()?;
        let choice = Choice::of(options)?;
        let backend = choice.open(options)?;
        let mac = given.unwrap_or_else(|| Mac::derive(&choice.identity()));
        let card = Arc::new(Card::new(services.clone(), mac));
        let link = connect(backend, &card, &services).map_err(BackendError::from)?;
        let mtu = options.mtu.or_else(|| options.user.then_some(passt::MTU));
        let mut device = Self {
            card,
            link,
            mac,
            mtu,
            speed: options.speed,
            pairs: options.queues,
            queue_size,
            features: 0,
            workers: QueueWorkers::new(services),
        };
        device.features = device.offered();
        info!("hardware address {mac}, back end {}", choice.identity());
        Ok(device)
    }

    fn offered(&self) -> u64 {
        let mut features = COMMON_FEATURES
            | config::F_MAC
            | config::F_STATUS
            | config::F_MRG_RXBUF
            | config::F_CTRL_VQ
            | config::F_CTRL_RX
            | config::F_CTRL_RX_EXTRA
            | config::F_CTRL_MAC_ADDR
            | config::F_SPEED_DUPLEX;
        if self.mtu.is_some() {
            features |= config::F_MTU;
        }
        if self.pairs > 1 {
            features |= config::F_MQ;
        }
        if self.tap().is_some_and(|tap| tap.offload()) {
            features |= HOST_OFFLOADS | GUEST_OFFLOADS | config::F_CTRL_GUEST_OFFLOADS;
        }
        features
    }

    fn tap(&self) -> Option<&Arc<Tap>> {
        match &self.link {
            Link::Packets { tap, .. } => tap.as_ref(),
            Link::Stream { .. } => None,
        }
    }

    fn config(&self) -> Config {
        let mac = self.card.filter().own;
        let link_up = self.card.link_up();
        Config { mac, link_up, pairs: self.pairs, mtu: self.mtu, speed: self.speed }
    }

    /// Serves a queue on the thread of a pair. Frames that are sent bring acknowledgements, and those that arrive are
    /// acknowledged: with both queues on one thread each direction gathers frames while the other is served.
    fn serve(
        &self,
        pair: u16,
        index: u16,
        setup: QueueSetup,
        handler: impl QueueHandler,
    ) -> Result<(), String> {
        self.workers.start_on(2 * pair, index, setup, handler)
    }

    fn start_receive(&self, index: u16, pair: u16, setup: QueueSetup) -> Result<(), String> {
        let features = setup.features;
        match &self.link {
            Link::Packets { ports, tap } => {
                if let Some(tap) = tap {
                    tap.set_offloads(features & GUEST_OFFLOADS);
                }
                let port = port(ports, pair)?;
                self.serve(pair, index, setup, PacketReceiver::new(self.card.clone(), port, features))
            }
            // A stream is received from by one queue.
            Link::Stream { link, .. } if pair == 0 => {
                let receiver = StreamReceiver::new(self.card.clone(), link.clone(), features);
                self.serve(pair, index, setup, receiver)
            }
            Link::Stream { .. } => self.serve(pair, index, setup, Idle),
        }
    }

    fn start_transmit(&self, index: u16, pair: u16, setup: QueueSetup) -> Result<(), String> {
        let card = self.card.clone();
        let failed = |error: std::io::Error| format!("queue {index}: {error}");
        match &self.link {
            Link::Packets { ports, .. } => {
                let outlet = PacketOutlet { card, port: port(ports, pair)? };
                self.serve(pair, index, setup, Transmitter::new(outlet).map_err(failed)?)
            }
            Link::Stream { link, .. } => {
                let outlet = StreamOutlet { card, link: link.clone(), blocked: None };
                self.serve(pair, index, setup, Transmitter::new(outlet).map_err(failed)?)
            }
        }
    }
}

/// A receive queue that nothing arrives on.
struct Idle;

impl QueueHandler for Idle {
    fn process(&mut self, _queue: &mut VirtQueue) -> Result<(), QueueError> {
        Ok(())
    }

    fn asks_for_kicks(&self) -> bool {
        true
    }
}

fn port(ports: &[Arc<PacketPort>], pair: u16) -> Result<Arc<PacketPort>, String> {
    ports.get(usize::from(pair)).cloned().ok_or_else(|| format!("there is no pair {pair} of queues"))
}

fn connect(backend: Backend, card: &Arc<Card>, services: &Services) -> std::io::Result<Link> {
    match backend {
        Backend::Packets { ports, tap } => Ok(Link::Packets { ports, tap }),
        Backend::Stream(stream, dial) => {
            let link = Arc::new(StreamLink::new(card.clone())?);
            link.attach(stream)?;
            let redialer = dial.map(|dial| Redialer::start(services, link.clone(), dial)).transpose()?;
            Ok(Link::Stream { link, _redialer: redialer })
        }
    }
}

impl VirtioDevice for NetDevice {
    fn traits(&self) -> VirtioTraits {
        let mut queue_sizes = vec![self.queue_size; 2 * usize::from(self.pairs)];
        queue_sizes.push(CONTROL_QUEUE_SIZE);
        VirtioTraits {
            device_type: DEVICE_TYPE,
            features: self.features,
            queue_sizes,
            config_size: CONFIG_SIZE as u32,
        }
    }

    fn read_config(&self, offset: u32, data: &mut [u8]) {
        let bytes = self.config().to_bytes();
        let fields = bytes.get(offset as usize..).unwrap_or_default();
        data.iter_mut().zip(fields).for_each(|(byte, field)| *byte = *field);
    }

    fn start_queue(&self, index: u16, setup: QueueSetup) -> Result<(), String> {
        match Role::of(index, self.pairs, setup.features) {
            Some(Role::Receive(pair)) => self.start_receive(index, pair, setup),
            Some(Role::Transmit(pair)) => self.start_transmit(index, pair, setup),
            Some(Role::Control) => {
                let (card, tap) = (self.card.clone(), self.tap().cloned());
                let features = setup.features;
                self.serve(0, index, setup, Control { card, tap, pairs: self.pairs, features })
            }
            None => Err(format!("there is no queue {index} with the features that the driver accepted")),
        }
    }

    fn stop_queue(&self, index: u16) -> Option<QueueState> {
        self.workers.stop(index)
    }

    fn reset(&self) {
        *self.card.filter() = Filter::open(self.mac);
        if let Some(tap) = self.tap() {
            tap.set_offloads(0);
            tap.attach(1);
        }
    }

    fn metrics(&self) -> Vec<Metric> {
        self.card.metrics()
    }
}
