//! Loading plugins: for gvmm itself and for the program that serves a plugin over vhost-user.
//!
//! A file is first read ([`manifest`]): the descriptor says what the plugin is and whether this build can load it, and
//! none of its code runs. Then it is loaded ([`library`]), and makes devices ([`instance`]) that implement the same
//! traits as any device in Rust.

pub mod instance;
pub mod library;
pub mod manifest;

pub use crate::abi::host::Host;
pub use instance::Instance;
pub use library::Library;
pub use manifest::Manifest;
