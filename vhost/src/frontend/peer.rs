//! A back end that is connected: requests to it, each with an answer within a time.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use crate::protocol::features::{self, BACKEND_REQ, CONFIG, MQ, PROTOCOL_FEATURES, REPLY_ACK};
use crate::protocol::payload::{Config, Payload};
use crate::protocol::{Channel, ChannelError, Deadline, Message, flag, request};

/// Why a back end did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum PeerError {
    /// The connection is of no more use.
    #[error("{request}: {error}")]
    Channel {
        /// What was asked.
        request: &'static str,
        /// What went wrong.
        error: ChannelError,
    },
    /// The back end says no.
    #[error("the back end refused {0}")]
    Refused(&'static str),
    /// The back end has smaller queues.
    #[error(
        "the back end refused a queue of {0} entries: give the size of its queues, by queue-size= for a device of type \
         vhost-user"
    )]
    QueueSize(u16),
    /// The back end is not one that can be used.
    #[error("{0}")]
    Unfit(String),
}

impl PeerError {
    /// Whether the back end has said no and goes on, so that another try would find the same.
    pub(super) fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused(_) | Self::QueueSize(_))
    }
}

/// A back end with which features have been agreed.
#[derive(Debug)]
pub(super) struct Peer {
    channel: Channel,
    timeout: Duration,
    /// Virtio features that it offers, and [`PROTOCOL_FEATURES`].
    pub(super) offered: u64,
    /// Protocol features in use.
    pub(super) protocol: u64,
    /// Queues that it says it has.
    pub(super) queues: Option<u64>,
}

impl Peer {
    /// Agrees on protocol features.
    pub(super) fn negotiate(channel: Channel, timeout: Duration) -> Result<Self, PeerError> {
        let mut peer = Self { channel, timeout, offered: 0, protocol: 0, queues: None };
        peer.offered = peer.ask(request::GET_FEATURES, &())?;
        if peer.offered & PROTOCOL_FEATURES != 0 {
            let theirs: u64 = peer.ask(request::GET_PROTOCOL_FEATURES, &())?;
            let common = theirs & features::SUPPORTED;
            peer.tell(request::SET_PROTOCOL_FEATURES, &common, &[])?;
            peer.protocol = common;
        }
        peer.tell(request::SET_OWNER, &(), &[])?;
        if peer.has(MQ) {
            peer.queues = Some(peer.ask(request::GET_QUEUE_NUM, &())?);
        }
        Ok(peer)
    }

    /// Whether a protocol feature is in use.
    pub(super) fn has(&self, feature: u64) -> bool {
        self.protocol & feature == feature
    }

    /// Asks for something that has an answer of its own.
    pub(super) fn ask<P: Payload>(&self, code: u32, body: &impl Payload) -> Result<P, PeerError> {
        let answer = self.exchange(code, body, &[], 0)?;
        answer.payload().map_err(|error| PeerError::Channel { request: request::name(code), error })
    }

    /// Asks for something that is answered with a descriptor.
    pub(super) fn ask_fd<P: Payload>(
        &self,
        code: u32,
        body: &impl Payload,
    ) -> Result<(P, OwnedFd), PeerError> {
        let name = request::name(code);
        let answer = self.exchange(code, body, &[], 0)?;
        let payload = answer.payload().map_err(|error| PeerError::Channel { request: name, error })?;
        match <[OwnedFd; 1]>::try_from(answer.fds) {
            Ok([fd]) => Ok((payload, fd)),
            Err(_) => Err(PeerError::Refused(name)),
        }
    }

    /// Tells something, and waits until it is done where the back end can say so.
    pub(super) fn tell(
        &self,
        code: u32,
        body: &impl Payload,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), PeerError> {
        let name = request::name(code);
        if !self.has(REPLY_ACK) {
            return self.send(code, body, fds, 0);
        }
        let answer = self.exchange(code, body, fds, flag::NEED_REPLY)?;
        match answer.payload::<u64>() {
            Ok(0) => Ok(()),
            Ok(_) => Err(PeerError::Refused(name)),
            Err(error) => Err(PeerError::Channel { request: name, error }),
        }
    }

    /// Waits until what it was told is done. With [`REPLY_ACK`] that is so already; else the answer to any question says so,
    /// since a back end does one thing after the other.
    pub(super) fn settle(&self) -> Result<(), PeerError> {
        if !self.has(REPLY_ACK) {
            self.ask::<u64>(request::GET_FEATURES, &())?;
        }
        Ok(())
    }

    /// Reads configuration space from its start; `None` when the back end has none of this size.
    pub(super) fn config(&self, size: u32) -> Result<Option<Vec<u8>>, PeerError> {
        debug_assert!(self.has(CONFIG));
        let asked = Config { offset: 0, flags: 0, content: vec![0; size as usize] };
        let answer = self.exchange(request::GET_CONFIG, &asked, &[], 0)?;
        // Some back ends refuse by a content that is empty, some by an answer that is.
        if answer.body.is_empty() {
            return Ok(None);
        }
        let name = request::name(request::GET_CONFIG);
        let config: Config = answer.payload().map_err(|error| PeerError::Channel { request: name, error })?;
        Ok((config.content.len() == asked.content.len()).then_some(config.content))
    }

    /// Gives the back end a channel for requests of its own; this end of it. `None` when it wants none.
    pub(super) fn open_requests(&self) -> Result<Option<Channel>, PeerError> {
        if !self.has(BACKEND_REQ) {
            return Ok(None);
        }
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()
            .map_err(|e| PeerError::Unfit(format!("cannot make a socket for its requests: {e}")))?;
        self.tell(request::SET_BACKEND_REQ_FD, &(), &[theirs.as_fd()])?;
        Ok(Some(Channel::from(ours)))
    }

    /// A second handle of the socket, to be watched for its end.
    pub(super) fn socket(&self) -> std::io::Result<OwnedFd> {
        self.channel.as_fd().try_clone_to_owned()
    }

    fn send(
        &self,
        code: u32,
        body: &impl Payload,
        fds: &[BorrowedFd<'_>],
        flags: u32,
    ) -> Result<(), PeerError> {
        let deadline = Deadline::after(self.timeout);
        let sent = self.channel.send(code, flags, &body.encode(), fds, deadline);
        sent.map_err(|error| PeerError::Channel { request: request::name(code), error })
    }

    fn exchange(
        &self,
        code: u32,
        body: &impl Payload,
        fds: &[BorrowedFd<'_>],
        flags: u32,
    ) -> Result<Message, PeerError> {
        self.send(code, body, fds, flags)?;
        let answer = self.channel.receive(Deadline::after(self.timeout)).and_then(|answer| {
            match answer.is_reply() && answer.code == code {
                true => Ok(answer),
                false => Err(ChannelError::Malformed(format!("message {} is not the answer", answer.code))),
            }
        });
        answer.map_err(|error| PeerError::Channel { request: request::name(code), error })
    }
}
