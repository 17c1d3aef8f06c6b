//! What the device is, as its back end tells and the options say.

use gvmm_plugin_api::virtio::{F_VERSION_1, VirtioTraits};

use super::connector::Told;
use super::options::{Settings, known};
use super::peer::{Peer, PeerError};
use crate::protocol::features::{CONFIG, NOT_FOR_DRIVER};

/// `VIRTIO_NET_F_MAC` (virtio 1.2, 5.1.3): the configuration has the hardware address.
const NET_F_MAC: u64 = 1 << 5;
/// Features of a network device that need the control queue or more configuration than the front end makes for a back end
/// that has none (virtio 1.2, 5.1.3): `MTU`, `STATUS`, the control queue's (17 to 23), `HASH_REPORT`, `RSS`,
/// `SPEED_DUPLEX`.
const NET_F_CONFIGURED: u64 = (1 << 3) | (1 << 16) | (0x7f << 17) | (1 << 57) | (1 << 60) | (1 << 63);
/// Bytes of the configuration of a network device up to the MTU (virtio 1.2, 5.1.4).
const NET_CONFIG: usize = 12;
/// Bytes of the configuration of a file system: tag and number of request queues (virtio 1.2, 5.11.4).
const FS_CONFIG: usize = 40;
/// Console: none of its configuration means anything without the features that say so (virtio 1.2, 5.3.4).
const CONSOLE: u32 = 3;
/// Queues that are believed when the back end says how many it has; some say how many they could have.
const MAX_TOLD_QUEUES: u64 = 64;
/// Most queues of a device; the protocol has 8 bits for their indexes.
const MAX_QUEUES: usize = 256;
/// Most bytes of configuration space of a device in a process of its own.
const MAX_TOLD_CONFIG: u32 = 2048;

/// What the device is.
#[derive(Debug, Clone)]
pub(super) struct Shape {
    /// As the transport sees it.
    pub(super) traits: VirtioTraits,
    /// Features that are the back end's business.
    pub(super) passed: u64,
    /// Whether the configuration space is the back end's.
    config_of_peer: bool,
    /// Bytes at the start of the configuration space that the options give.
    overlay: Vec<u8>,
}

impl Shape {
    /// Finds out what the device is; also its configuration space.
    pub(super) fn of(
        peer: &Peer,
        settings: &Settings,
        told: Option<&Told>,
    ) -> Result<(Self, Vec<u8>), PeerError> {
        if peer.offered & F_VERSION_1 == 0 {
            return Err(PeerError::Unfit("the back end knows only drivers of before virtio 1.0".to_owned()));
        }
        let config_of_peer = peer.has(CONFIG);
        let mut passed = peer.offered & !NOT_FOR_DRIVER;
        if settings.device_type == known::NET && !config_of_peer {
            passed &= !NET_F_CONFIGURED;
        }
        let mut overlay = Vec::new();
        let mut own = 0;
        if let Some(mac) = settings.mac {
            overlay = mac.to_vec();
            own = NET_F_MAC;
        }
        overlay.extend(settings.tag.into_iter().flatten());
        let config_size = told.map(|told| told.config_size).or(settings.config_size);
        let config = match config_of_peer {
            true => first_config(peer, settings, config_size)?,
            false => made_config(settings)?,
        };
        let queue_sizes = match told {
            Some(told) => told_queues(told)?,
            None => vec![settings.queue_size; queues(peer, settings)?],
        };
        let traits = VirtioTraits {
            device_type: settings.device_type,
            features: passed | own,
            queue_sizes,
            // A configuration is read in one message.
            config_size: config.len() as u32,
        };
        let shape = Self { traits, passed, config_of_peer, overlay };
        let config = shape.overlaid(config);
        Ok((shape, config))
    }

    /// The configuration space as it is now; `None` when the back end has none of its own.
    pub(super) fn config(&self, peer: &Peer) -> Result<Option<Vec<u8>>, PeerError> {
        if !self.config_of_peer || self.traits.config_size == 0 {
            return Ok(None);
        }
        let config = peer.config(self.traits.config_size)?;
        let config = config.ok_or(PeerError::Refused("GET_CONFIG of the size that it had"))?;
        Ok(Some(self.overlaid(config)))
    }

    /// Whether what the driver writes to configuration space is to be passed on.
    pub(super) fn passes_config(&self) -> bool {
        self.config_of_peer
    }

    /// Whether a back end that has come can take the place of the one before, for a driver that uses `features`.
    pub(super) fn check(&self, peer: &Peer, features: Option<u64>) -> Result<(), PeerError> {
        let missing = features.unwrap_or(0) & self.passed & !peer.offered;
        if missing != 0 {
            return Err(PeerError::Unfit(format!("it lacks the features {missing:#x} that the driver uses")));
        }
        if self.config_of_peer && !peer.has(CONFIG) {
            return Err(PeerError::Unfit("it has no configuration space any more".to_owned()));
        }
        let queues = self.traits.queue_sizes.len() as u64;
        match peer.queues {
            Some(told) if told < queues => {
                Err(PeerError::Unfit(format!("it has {told} queues, the device has {queues}")))
            }
            _ => Ok(()),
        }
    }

    fn overlaid(&self, mut config: Vec<u8>) -> Vec<u8> {
        let len = self.overlay.len().min(config.len());
        config[..len].copy_from_slice(&self.overlay[..len]);
        config
    }
}

fn first_config(peer: &Peer, settings: &Settings, config_size: Option<u32>) -> Result<Vec<u8>, PeerError> {
    let asked = config_size.as_ref().map(std::slice::from_ref);
    let sizes = asked.or(settings.known.map(|known| known.config_sizes)).unwrap_or_default();
    for &size in sizes {
        if size == 0 {
            return Ok(Vec::new());
        }
        if let Some(config) = peer.config(size)? {
            return Ok(config);
        }
    }
    match sizes {
        [] => Ok(Vec::new()),
        sizes => Err(PeerError::Unfit(format!(
            "the back end has no configuration of {sizes:?} bytes: is it one for this type of device?"
        ))),
    }
}

/// The configuration of a device whose back end leaves that to the front end.
fn made_config(settings: &Settings) -> Result<Vec<u8>, PeerError> {
    let sizes = settings.known.map_or(&[0][..], |known| known.config_sizes);
    match settings.device_type {
        known::NET => Ok(vec![0; NET_CONFIG]),
        known::FS => {
            let mut config = vec![0; FS_CONFIG];
            let requests = settings.queues.unwrap_or(2).saturating_sub(1).max(1);
            config[36..].copy_from_slice(&u32::from(requests).to_le_bytes());
            Ok(config)
        }
        CONSOLE => Ok(vec![0; sizes[0] as usize]),
        _ if sizes.contains(&0) && settings.config_size.unwrap_or(0) == 0 => Ok(Vec::new()),
        _ => Err(PeerError::Unfit(
            "the back end has no configuration space (protocol feature CONFIG), which this type of device needs"
                .to_owned(),
        )),
    }
}

/// Sizes that a program tells which may be anybody's by now.
fn told_queues(told: &Told) -> Result<Vec<u16>, PeerError> {
    let sizes = &told.queue_sizes;
    let good = sizes.len() <= MAX_QUEUES && sizes.iter().all(|size| size.is_power_of_two());
    match good && told.config_size <= MAX_TOLD_CONFIG {
        true => Ok(sizes.clone()),
        false => Err(PeerError::Unfit(format!("its process tells of a device that cannot be: {told:?}"))),
    }
}

fn queues(peer: &Peer, settings: &Settings) -> Result<usize, PeerError> {
    let usual = settings.known.map_or(1, |known| known.queues);
    let told = peer.queues.filter(|told| (1..=MAX_TOLD_QUEUES).contains(told));
    // A network back end without configuration tells how many pairs it could have; the control queue is no pair's.
    let told = told.filter(|_| peer.has(CONFIG) || settings.device_type != known::NET);
    let wanted = settings.queues.map(u64::from).or(told).unwrap_or(usual.into());
    match peer.queues {
        Some(most) if wanted > most => {
            Err(PeerError::Unfit(format!("option 'queues': the back end has {most} queues, not {wanted}")))
        }
        // At most 256.
        _ => Ok(wanted as usize),
    }
}
