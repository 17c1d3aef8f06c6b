//! What users say of a back end: `--device vhost-user,type=TYPE,socket=PATH[,...]`.

use std::path::PathBuf;
use std::time::Duration;

use gvmm_plugin_api::descriptor::{Descriptor, Kind};
use gvmm_plugin_api::options::{OptionKind, PathAccess, nearest};

use crate::device_types::{self, DEVICE_TYPES, DeviceType};

gvmm_plugin_api::options! {
    /// Options of a device that another program serves.
    pub struct Options {
        /// Type of the device: net, blk, console, rng, vsock, fs, ..., or its virtio number.
        pub kind: String = required("type", OptionKind::Text),
        /// Unix socket that the back end listens on.
        pub socket: Option<PathBuf> = optional("socket", OptionKind::Path(PathAccess::Connect)),
        /// Connected Unix socket that gvmm was started with; such a back end cannot return.
        pub fd: Option<i32> = optional("fd", OptionKind::Fd),
        /// Number of queues; without it, what the back end says or the type has.
        pub queues: Option<u16> = optional("queues", OptionKind::Integer { min: 1, max: 256 }),
        /// Most entries of each queue, a power of two.
        pub queue_size: u16 = with_default("queue-size", "256", OptionKind::Integer { min: 2, max: 32768 }),
        /// Bytes of configuration space, for a type that gvmm does not know by name.
        pub config_size: Option<u32> = optional("config-size", OptionKind::Integer { min: 0, max: 256 }),
        /// Name of the file system in the guest (fs).
        pub tag: Option<String> = optional("tag", OptionKind::Text),
        /// Hardware address in the guest, such as 52:54:00:12:34:56 (net).
        pub mac: Option<String> = optional("mac", OptionKind::Text),
        /// The back end completes requests in the order in which they were made, so that one that was restarted may go
        /// on where the used ring stands even if it keeps no notes of requests in flight.
        pub in_order: bool = with_default("in-order", "off", OptionKind::Flag),
        /// Seconds to wait for the back end when gvmm starts.
        pub wait: u16 = with_default("wait", "10", OptionKind::Integer { min: 0, max: 3600 }),
        /// Seconds that the back end may take to answer before it counts as lost.
        pub timeout: u16 = with_default("timeout", "10", OptionKind::Integer { min: 1, max: 600 }),
        /// Seconds between questions whether the back end still answers; 0 asks none.
        pub heartbeat: u16 = with_default("heartbeat", "0", OptionKind::Integer { min: 0, max: 3600 }),
    }
}

/// The front end as a kind of plugin, for lists and help texts.
pub const DESCRIPTOR: Descriptor = Descriptor {
    id: "org.gvmm.vhost-user",
    name: "vhost-user",
    version: env!("CARGO_PKG_VERSION"),
    vendor: "gvmm",
    url: "",
    description: "A virtio device that another program serves over vhost-user",
    license: env!("CARGO_PKG_LICENSE"),
    kind: Kind::Virtio(0),
    options: Options::SPECS,
    requires: &[],
    syscalls: &[],
};

/// Why options were refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// No such type.
    #[error("option 'type': there is no device type '{given}'{}; any virtio number will do", hint(.given))]
    Type {
        /// As given.
        given: String,
    },
    /// Neither or both ways to the back end.
    #[error("option 'socket': give either socket=PATH or fd=NUMBER")]
    NoBackEnd,
    /// Not a power of two.
    #[error("option 'queue-size': {0} is not a power of two")]
    QueueSize(u16),
    /// An option for another type.
    #[error("option '{option}': a device of type {kind} has none; it is for type={wanted}")]
    NotForType {
        /// The option.
        option: &'static str,
        /// Type of the device.
        kind: String,
        /// Type that the option is for.
        wanted: &'static str,
    },
    /// Not a hardware address.
    #[error("option 'mac': '{0}' is no hardware address of a network card, such as 52:54:00:12:34:56")]
    Mac(String),
    /// Empty or too long.
    #[error("option 'tag': '{0}' has {len} bytes; it may have 1 to 36", len = .0.len())]
    Tag(String),
    /// An fs device without a name.
    #[error("option 'tag' is missing: the guest mounts the file system by it")]
    NoTag,
}

fn hint(given: &str) -> String {
    let names = || DEVICE_TYPES.iter().map(|known| known.name);
    match nearest(given, names()) {
        Some(name) => format!("; did you mean '{name}'?"),
        None => format!("; there are {}", names().collect::<Vec<_>>().join(", ")),
    }
}

/// Options that make sense together.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Virtio device type.
    pub device_type: u32,
    /// What is known of the type.
    pub known: Option<&'static DeviceType>,
    /// See [`Options::queues`].
    pub queues: Option<u16>,
    /// See [`Options::queue_size`].
    pub queue_size: u16,
    /// See [`Options::config_size`].
    pub config_size: Option<u32>,
    /// See [`Options::tag`], padded with zeroes.
    pub tag: Option<[u8; 36]>,
    /// See [`Options::mac`].
    pub mac: Option<[u8; 6]>,
    /// See [`Options::in_order`].
    pub in_order: bool,
    /// See [`Options::wait`].
    pub wait: Duration,
    /// See [`Options::timeout`].
    pub timeout: Duration,
    /// See [`Options::heartbeat`].
    pub heartbeat: Option<Duration>,
}

/// Device types whose configuration space the front end makes when the back end has none.
pub(super) mod known {
    pub(in super::super) const NET: u32 = 1;
    pub(in super::super) const FS: u32 = 26;
}

impl Settings {
    /// For the device of a plugin, whose process tells the rest.
    pub(crate) fn of_plugin(device_type: u32) -> Self {
        Self {
            device_type,
            known: device_types::of_number(device_type),
            queues: None,
            queue_size: 256,
            config_size: None,
            tag: None,
            mac: None,
            in_order: false,
            wait: Duration::from_secs(10),
            timeout: Duration::from_secs(10),
            heartbeat: Some(Duration::from_secs(10)),
        }
    }

    /// Checks the options against each other.
    pub fn new(options: &Options) -> Result<Self, SettingsError> {
        let number = options.kind.parse::<u32>().ok().filter(|number| *number > 0);
        let known = device_types::of_name(&options.kind).or_else(|| device_types::of_number(number?));
        let device_type = known.map(|known| known.number).or(number);
        let device_type = device_type.ok_or_else(|| SettingsError::Type { given: options.kind.clone() })?;
        if !options.queue_size.is_power_of_two() {
            return Err(SettingsError::QueueSize(options.queue_size));
        }
        if options.socket.is_some() == options.fd.is_some() {
            return Err(SettingsError::NoBackEnd);
        }
        let only_for = |number: u32, wanted, option, given: bool| match given && device_type != number {
            true => Err(SettingsError::NotForType { option, kind: options.kind.clone(), wanted }),
            false => Ok(()),
        };
        only_for(known::FS, "fs", "tag", options.tag.is_some())?;
        only_for(known::NET, "net", "mac", options.mac.is_some())?;
        if device_type == known::FS && options.tag.is_none() {
            return Err(SettingsError::NoTag);
        }
        let seconds = |count: u16| Duration::from_secs(count.into());
        Ok(Self {
            device_type,
            known,
            queues: options.queues,
            queue_size: options.queue_size,
            config_size: options.config_size,
            tag: options.tag.as_deref().map(tag).transpose()?,
            mac: options.mac.as_deref().map(mac).transpose()?,
            // Network back ends serve a queue in order, which is what every front end relies on when one returns.
            in_order: options.in_order || device_type == known::NET,
            wait: seconds(options.wait),
            timeout: seconds(options.timeout),
            heartbeat: (options.heartbeat > 0).then(|| seconds(options.heartbeat)),
        })
    }
}

fn tag(text: &str) -> Result<[u8; 36], SettingsError> {
    let mut bytes = [0; 36];
    let room = bytes.get_mut(..text.len()).filter(|room| !room.is_empty());
    room.ok_or_else(|| SettingsError::Tag(text.to_owned()))?.copy_from_slice(text.as_bytes());
    Ok(bytes)
}

fn mac(text: &str) -> Result<[u8; 6], SettingsError> {
    let byte = |pair: &str| (pair.len() == 2).then(|| u8::from_str_radix(pair, 16).ok())?;
    let bytes: Option<Vec<u8>> = text.split(':').map(byte).collect();
    let bytes = bytes.and_then(|bytes| <[u8; 6]>::try_from(bytes).ok());
    // The lowest bit of the first byte is that of a group.
    bytes.filter(|bytes| bytes[0] & 1 == 0).ok_or_else(|| SettingsError::Mac(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use gvmm_plugin_api::options::Values;

    use super::*;

    fn settings(given: &[(&str, &str)]) -> Result<Settings, SettingsError> {
        let values = Values::check(Options::SPECS, given.iter().copied()).unwrap();
        Settings::new(&Options::from_values(&values).unwrap())
    }

    fn refusal(given: &[(&str, &str)]) -> String {
        settings(given).unwrap_err().to_string()
    }

    const SOCKET: (&str, &str) = ("socket", "/s");

    #[test]
    fn types_go_by_name_and_by_number() {
        assert_eq!(settings(&[("type", "blk"), SOCKET]).unwrap().device_type, 2);
        assert_eq!(settings(&[("type", "2"), SOCKET]).unwrap().known.unwrap().name, "blk");
        assert!(settings(&[("type", "63"), SOCKET]).unwrap().known.is_none());
        assert_eq!(
            refusal(&[("type", "block"), SOCKET]),
            "option 'type': there is no device type 'block'; did you mean 'blk'?; any virtio number will do"
        );
        assert!(refusal(&[("type", "0"), SOCKET]).starts_with("option 'type'"));
    }

    #[test]
    fn there_is_one_way_to_the_back_end() {
        let wanted = "option 'socket': give either socket=PATH or fd=NUMBER";
        assert_eq!(refusal(&[("type", "blk")]), wanted);
        assert_eq!(refusal(&[("type", "blk"), SOCKET, ("fd", "5")]), wanted);
        assert!(settings(&[("type", "blk"), ("fd", "5")]).is_ok());
    }

    #[test]
    fn options_of_one_type_are_refused_for_others() {
        assert_eq!(
            refusal(&[("type", "blk"), SOCKET, ("tag", "data")]),
            "option 'tag': a device of type blk has none; it is for type=fs"
        );
        assert!(refusal(&[("type", "fs"), SOCKET]).starts_with("option 'tag' is missing"));
        assert!(refusal(&[("type", "fs"), SOCKET, ("tag", "")]).contains("1 to 36"));
        assert_eq!(
            refusal(&[("type", "rng"), SOCKET, ("queue-size", "100")]),
            "option 'queue-size': 100 is not a power of two"
        );
    }

    #[test]
    fn hardware_addresses_are_those_of_cards() {
        let with = |mac: &str| settings(&[("type", "net"), SOCKET, ("mac", mac)]);
        assert_eq!(with("52:54:00:12:34:56").unwrap().mac, Some([0x52, 0x54, 0, 0x12, 0x34, 0x56]));
        for bad in [
            "",
            "52:54:00:12:34",
            "52:54:00:12:34:56:78",
            "53:54:00:12:34:56",
            "5:54:00:12:34:56",
            "+5:54:00:12:34:56",
        ] {
            assert!(with(bad).is_err(), "{bad}");
        }
    }
}
