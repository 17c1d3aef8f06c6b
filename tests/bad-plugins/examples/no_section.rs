//! Is a shared library, but no plugin.

/// Something to export.
#[unsafe(no_mangle)]
pub extern "C" fn nothing() {}
