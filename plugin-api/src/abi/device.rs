//! What every device has, whatever its kind. Frozen.
#![allow(non_local_definitions, reason = "abi_stable's derive puts impls into functions")]

use abi_stable::sabi_trait;
use abi_stable::std_types::{RBox, ROption, RStr, RString, RVec, Tuple2};

use super::extension::Extension;

/// A device of a plugin.
#[sabi_trait]
pub trait RawDevice: Send + Sync {
    /// Back to the state after power-on; an error is the text of a panic.
    fn reset(&self) -> ROption<RString>;
    /// Counters.
    fn metrics(&self) -> RVec<Tuple2<RString, u64>>;
    /// An interface of the device, by id; the device kinds are asked for in this way.
    #[sabi(last_prefix_field)]
    fn extension(&self, id: RStr<'_>) -> ROption<Extension>;
}

/// An owned [`RawDevice`].
pub type RawDeviceBox = RawDevice_TO<'static, RBox<()>>;
