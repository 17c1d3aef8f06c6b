//! Feature bits of the protocol, and virtio features that have a meaning for it.

/// `VHOST_USER_F_PROTOCOL_FEATURES`, among the virtio features: the back end has protocol features.
pub const PROTOCOL_FEATURES: u64 = 1 << 30;

/// Several queues; `GET_QUEUE_NUM`.
pub const MQ: u64 = 1 << 0;
/// Any request may ask for an answer.
pub const REPLY_ACK: u64 = 1 << 3;
/// The back end may send requests of its own.
pub const BACKEND_REQ: u64 = 1 << 5;
/// The back end has the configuration space.
pub const CONFIG: u64 = 1 << 9;
/// Requests in flight are noted in memory that outlives the back end.
pub const INFLIGHT_SHMFD: u64 = 1 << 12;
/// `RESET_DEVICE`.
pub const RESET_DEVICE: u64 = 1 << 13;
/// Memory regions are added and removed one by one.
pub const CONFIGURE_MEM_SLOTS: u64 = 1 << 15;
/// `SET_STATUS` and `GET_STATUS`.
pub const STATUS: u64 = 1 << 16;

/// The protocol features that this crate speaks, at either end.
pub const SUPPORTED: u64 =
    MQ | REPLY_ACK | BACKEND_REQ | CONFIG | INFLIGHT_SHMFD | RESET_DEVICE | CONFIGURE_MEM_SLOTS | STATUS;

/// `VIRTIO_F_IN_ORDER` (virtio 1.2, 6): requests are completed in the order in which they were made.
pub const F_IN_ORDER: u64 = 1 << 35;

/// Virtio features that a front end must not pass from the back end to the driver: `VHOST_F_LOG_ALL` and
/// [`PROTOCOL_FEATURES`] are not virtio's at all; behind them those that change what the transport or the rings look
/// like: `ACCESS_PLATFORM` (there is no IOMMU), `RING_PACKED`, `SR_IOV`, `NOTIFICATION_DATA`, `NOTIF_CONFIG_DATA`,
/// `RING_RESET`, `ADMIN_VQ`.
pub const NOT_FOR_DRIVER: u64 = (1 << 26)
    | PROTOCOL_FEATURES
    | (1 << 33)
    | (1 << 34)
    | (1 << 37)
    | (1 << 38)
    | (1 << 39)
    | (1 << 40)
    | (1 << 41);

/// Bits of the device status (virtio 1.2, 2.1).
pub mod status {
    /// The guest has noticed the device.
    pub const ACKNOWLEDGE: u8 = 1;
    /// The guest knows how to drive it.
    pub const DRIVER: u8 = 2;
    /// The driver may use it.
    pub const DRIVER_OK: u8 = 4;
    /// The driver has accepted its features.
    pub const FEATURES_OK: u8 = 8;
    /// It cannot go on without a reset.
    pub const NEEDS_RESET: u8 = 64;
}
