//! What is at the lines, for the guest's drivers of keys and lights.

use gvmm_plugin_api::fdt::{ExtraNode, FdtValue};

/// `KEY_POWER` (Linux, include/uapi/linux/input-event-codes.h).
const KEY_POWER: u32 = 116;
/// `GPIO_ACTIVE_HIGH` (Linux, include/dt-bindings/gpio/gpio.h).
const ACTIVE_HIGH: u32 = 0;

/// What is at the lines.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Attached {
    power_key: Option<u8>,
    lights: u8,
}

impl Attached {
    /// A power key at a line, and lights at those whose bit is set.
    pub(crate) fn new(power_key: Option<u8>, lights: u8) -> Result<Self, String> {
        match power_key.filter(|line| lights >> line & 1 != 0) {
            Some(line) => Err(format!(
                "line {line} has the power key and cannot have a light: take its bit out of `lights`"
            )),
            None => Ok(Self { power_key, lights }),
        }
    }

    /// The nodes for them (Linux bindings, input/gpio-keys and leds/leds-gpio).
    pub(crate) fn nodes(self) -> Vec<ExtraNode> {
        let keys = self.power_key.map(|line| {
            let power = at_line("power", line)
                .with("label", FdtValue::Strings(vec!["power".to_owned()]))
                .with("linux,code", FdtValue::U32s(vec![KEY_POWER]));
            ExtraNode::new("gpio-keys", &["gpio-keys"]).with_child(power)
        });
        let lines = (0..8).filter(|line| self.lights >> line & 1 != 0);
        let lights = (self.lights != 0).then(|| {
            lines.fold(ExtraNode::new("gpio-leds", &["gpio-leds"]), |node, line| {
                node.with_child(at_line(&format!("light-{line}"), line))
            })
        });
        keys.into_iter().chain(lights).collect()
    }
}

/// A node for what is at a line of the controller.
fn at_line(name: &str, line: u8) -> ExtraNode {
    ExtraNode::new(name, &[]).with_device("gpios", &[&[u32::from(line), ACTIVE_HIGH]])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed expectation fails the test")]

    use super::*;

    fn gpios(node: &ExtraNode) -> &[Vec<u32>] {
        &node.references.iter().find(|(name, _)| name == "gpios").unwrap().1
    }

    #[test]
    fn each_key_and_light_has_a_node_that_names_its_line() {
        let nodes = Attached::new(Some(3), 0x21).unwrap().nodes();
        let [keys, lights] = nodes.as_slice() else { panic!("{nodes:?}") };
        assert_eq!(keys.compatible, ["gpio-keys"]);
        assert_eq!(gpios(&keys.children[0]), [[3, ACTIVE_HIGH]]);
        assert_eq!(lights.compatible, ["gpio-leds"]);
        let names: Vec<_> = lights.children.iter().map(|light| light.name.as_str()).collect();
        assert_eq!(names, ["light-0", "light-5"]);
        assert_eq!(gpios(&lights.children[1]), [[5, ACTIVE_HIGH]]);
    }

    #[test]
    fn there_are_no_nodes_for_bare_lines() {
        assert!(Attached::default().nodes().is_empty());
    }

    #[test]
    fn a_line_has_a_key_or_a_light() {
        let error = Attached::new(Some(5), 0x20).unwrap_err();
        assert_eq!(error, "line 5 has the power key and cannot have a light: take its bit out of `lights`");
    }
}
