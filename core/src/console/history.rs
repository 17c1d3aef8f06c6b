//! The last of what a console has shown, for clients that come late.

use std::collections::VecDeque;

/// A bounded window on a stream of bytes; positions count from the start of the stream.
#[derive(Debug, Default)]
pub(super) struct History {
    bytes: VecDeque<u8>,
    end: u64,
}

impl History {
    /// Bytes that are kept: some thousand lines.
    pub(super) const CAPACITY: usize = 256 << 10;

    /// Adds to the end; what is older than the window goes.
    pub(super) fn append(&mut self, bytes: &[u8]) {
        self.end += bytes.len() as u64;
        let kept = &bytes[bytes.len().saturating_sub(Self::CAPACITY)..];
        let excess = (self.bytes.len() + kept.len()).saturating_sub(Self::CAPACITY);
        self.bytes.drain(..excess);
        self.bytes.extend(kept);
    }

    /// Position behind the last byte.
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    /// Position of the oldest byte that is kept.
    pub(super) fn start(&self) -> u64 {
        self.end - self.bytes.len() as u64
    }

    /// A piece of what is kept from a position on, as long as it lies in one place; empty at the end.
    pub(super) fn piece(&self, position: u64) -> &[u8] {
        let skip = usize::try_from(position.saturating_sub(self.start())).unwrap_or(usize::MAX);
        let (older, newer) = self.bytes.as_slices();
        match older.get(skip..) {
            Some(piece) if !piece.is_empty() => piece,
            _ => newer.get(skip.saturating_sub(older.len())..).unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(history: &History, mut position: u64) -> Vec<u8> {
        let mut all = Vec::new();
        while position < history.end() {
            let piece = history.piece(position);
            all.extend_from_slice(piece);
            position += piece.len() as u64;
        }
        all
    }

    #[test]
    fn keeps_everything_while_there_is_room() {
        let mut history = History::default();
        history.append(b"one ");
        history.append(b"two");
        assert_eq!(from(&history, 0), b"one two");
        assert_eq!(from(&history, 4), b"two");
        assert_eq!(history.piece(7), b"");
    }

    #[test]
    fn keeps_the_newest_bytes_when_the_room_is_used_up() {
        let mut history = History::default();
        let stream: Vec<u8> = (0..3 * History::CAPACITY + 77).map(|i| (i % 251) as u8).collect();
        for chunk in stream.chunks(10_007) {
            history.append(chunk);
        }
        assert_eq!(history.end(), stream.len() as u64);
        assert_eq!(history.start(), (stream.len() - History::CAPACITY) as u64);
        let start = history.start();
        assert!(from(&history, start) == stream[stream.len() - History::CAPACITY..]);
        assert!(from(&history, start + 70_000) == stream[stream.len() - History::CAPACITY + 70_000..]);
    }

    #[test]
    fn takes_a_chunk_larger_than_itself() {
        let mut history = History::default();
        history.append(&[1; 10]);
        history.append(&vec![2; History::CAPACITY + 5]);
        assert_eq!((history.start(), history.end()), (15, History::CAPACITY as u64 + 15));
        assert!(history.piece(0).iter().all(|&byte| byte == 2));
    }
}
