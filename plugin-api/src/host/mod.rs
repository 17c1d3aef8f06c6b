//! Loading plugins: for gvmm itself and for the program that serves a plugin over vhost-user.
//!
//! A file is first read ([`manifest`]): the descriptor says what the plugin is and whether this build can load it, and
//! none of its code runs. Then it is loaded ([`library`]), and makes devices ([`instance`]) that implement the same
//! traits as any device in Rust. What a user writes to name a plugin and its options means the same to every host
//! ([`argument`], [`search`]).

pub mod argument;
pub mod instance;
pub mod library;
pub mod manifest;
pub mod program;
pub mod search;

pub use crate::abi::host::Host;
pub use instance::Instance;
pub use library::Library;
pub use manifest::Manifest;
