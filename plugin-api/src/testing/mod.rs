//! Testing a device without a VM.
