//! Why there is no usable Gunyah driver, and what to do.

use std::path::Path;

use super::probe::Probe;

/// Puts a probe that found no usable driver into words. Of a usable one there is nothing to say.
pub fn why_unavailable(probe: &Probe, node: &Path) -> String {
    let node = node.display();
    match probe {
        Probe::NoNode => format!(
            "{node} does not exist: this kernel has no Gunyah driver (CONFIG_GUNYAH), it is not loaded (modprobe \
             gunyah), or this machine does not run under Gunyah"
        ),
        Probe::NotPermitted(failure) => format!(
            "{node}: {failure}: run gvmm as root or as a member of the node's group; on a phone SELinux may stand in \
             the way as well (as root: setenforce 0)"
        ),
        Probe::CannotOpen(failure) => format!("{node}: {failure}: the driver is there but its device is not"),
        Probe::Vendor => format!(
            "{node} belongs to the vendor driver of kernels before 6.1, which runs signed images by name and no VM of \
             one's own: a kernel with the later driver is needed (Snapdragon 8 Gen 3 and later)"
        ),
        Probe::CannotCreateVm(failure) => {
            format!("{node}: the driver makes no VM: {failure}; look at the kernel log")
        }
        Probe::Unrecognised => format!(
            "{node} knows the calls of no driver that gvmm knows: report it with `gvmm doctor --json` and the kernel's \
             version"
        ),
        Probe::Usable(driver) => format!("{node} has a usable driver of generation {}", driver.generation),
    }
}
