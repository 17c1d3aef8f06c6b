//! Guest memory that a hypervisor makes.

use std::fmt;
use std::os::fd::OwnedFd;

/// Makes the files that guest memory is mapped from, where the hypervisor owns the memory of its guests and takes no
/// other.
pub trait MemorySource: fmt::Debug + Send + Sync {
    /// A file of `size` zero bytes, a multiple of [`super::REGION_ALIGNMENT`]; one for each region.
    ///
    /// # Errors
    ///
    /// Why the hypervisor makes none, in words for the user.
    fn file(&self, size: u64) -> Result<OwnedFd, String>;
}
