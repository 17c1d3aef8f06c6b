//! The escape key: what is typed at the terminal and not meant for the guest.

/// Ctrl-a.
const PREFIX: u8 = 0x01;

/// What the key after the escape key asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    /// Stop the VM.
    Leave,
    /// Give the keyboard to the next device on this terminal.
    Next,
    /// Say what keys there are.
    Help,
}

/// Shown when the terminal is taken over.
pub(super) const GREETING: &str = "gvmm: Ctrl-a x stops the VM, Ctrl-a h shows all keys";

/// Shown on request.
pub(super) const HELP: &str = "
gvmm: Ctrl-a x       stops the VM
      Ctrl-a n       gives the keyboard to the next console on this terminal
      Ctrl-a Ctrl-a  sends Ctrl-a to the guest
      Ctrl-a h       shows this";

/// Splits what is typed into input of the guest and actions.
#[derive(Debug, Default)]
pub(super) struct Escape {
    prefixed: bool,
}

impl Escape {
    /// Appends to `guest` what is for the guest; the actions come in order.
    pub(super) fn filter(&mut self, typed: &[u8], guest: &mut Vec<u8>) -> Vec<Action> {
        let mut actions = Vec::new();
        for &byte in typed {
            if !self.prefixed {
                if byte == PREFIX {
                    self.prefixed = true;
                } else {
                    guest.push(byte);
                }
                continue;
            }
            self.prefixed = false;
            match byte {
                PREFIX | b'a' => guest.push(PREFIX),
                b'x' | b'X' => actions.push(Action::Leave),
                b'n' | b'N' => actions.push(Action::Next),
                // An unknown key is a question, too.
                _ => actions.push(Action::Help),
            }
        }
        actions
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(chunks: &[&[u8]]) -> (Vec<u8>, Vec<Action>) {
        let (mut escape, mut guest, mut actions) = (Escape::default(), Vec::new(), Vec::new());
        for chunk in chunks {
            actions.extend(escape.filter(chunk, &mut guest));
        }
        (guest, actions)
    }

    #[test]
    fn passes_on_what_follows_no_escape_key() {
        assert_eq!(typed(&[b"ls -x\r\x03"]), (b"ls -x\r\x03".to_vec(), vec![]));
    }

    #[test]
    fn keeps_the_escape_key_and_its_command_from_the_guest() {
        assert_eq!(
            typed(&[b"a\x01xb\x01hc\x01n"]),
            (b"abc".to_vec(), vec![Action::Leave, Action::Help, Action::Next])
        );
    }

    #[test]
    fn sends_the_escape_key_itself_when_it_is_doubled() {
        assert_eq!(typed(&[b"\x01\x01\x01a"]), (b"\x01\x01".to_vec(), vec![]));
    }

    #[test]
    fn sees_a_command_that_arrives_in_two_pieces() {
        assert_eq!(typed(&[b"a\x01", b"xb"]), (b"ab".to_vec(), vec![Action::Leave]));
    }

    #[test]
    fn answers_an_unknown_key_with_help() {
        assert_eq!(typed(&[b"\x01q"]), (vec![], vec![Action::Help]));
    }
}
