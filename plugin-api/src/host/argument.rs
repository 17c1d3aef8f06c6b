//! The value of `--device`: `PLUGIN[,key=value...]`.

/// Which process a device runs in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Isolation {
    /// The host's own.
    #[default]
    Off,
    /// One of its own, in a sandbox that is as whole as the machine allows.
    On,
    /// One of its own, in a whole sandbox or not at all.
    Required,
}

/// A device as asked for on the command line or in a profile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceArgument {
    /// Path or name of the plugin.
    pub plugin: String,
    /// Id of the device, if given.
    pub id: Option<String>,
    /// Whether the options are asked for instead of a device.
    pub help: bool,
    /// Which process it runs in.
    pub isolate: Isolation,
    /// Everything else, for the plugin.
    pub options: Vec<(String, String)>,
}

impl DeviceArgument {
    /// Parses the value of `--device`. Two commas stand for one in a value; a key alone means `on`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut fields = split(text).into_iter();
        let plugin = fields.next().filter(|plugin| !plugin.is_empty());
        let plugin = plugin.ok_or("the plugin is missing: write --device PLUGIN[,key=value...]")?;
        let mut device = Self { plugin, id: None, help: false, isolate: Isolation::Off, options: Vec::new() };
        for field in fields {
            match field.split_once('=') {
                None if field == "help" => device.help = true,
                None if field.is_empty() => return Err(format!("empty option in '{text}'")),
                None if field == "isolate" => device.isolate = Isolation::On,
                None => device.options.push((field, "on".to_owned())),
                Some(("id", id)) => device.set_id(id)?,
                Some(("isolate", word)) => device.isolate = isolation(word)?,
                Some((key, value)) => device.options.push((key.to_owned(), value.to_owned())),
            }
        }
        Ok(device)
    }

    fn set_id(&mut self, id: &str) -> Result<(), String> {
        let good = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if id.is_empty() || id.len() > 64 || !id.chars().all(good) {
            return Err(format!("id '{id}': use 1 to 64 letters, digits, '-', '_' or '.'"));
        }
        if self.id.replace(id.to_owned()).is_some() {
            return Err("option 'id' is given twice".to_owned());
        }
        Ok(())
    }

    /// The options as pairs.
    pub fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.options.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }
}

fn isolation(word: &str) -> Result<Isolation, String> {
    match word {
        "off" => Ok(Isolation::Off),
        "on" => Ok(Isolation::On),
        "required" => Ok(Isolation::Required),
        other => Err(format!("option 'isolate': '{other}' is not one of off, on, required")),
    }
}

/// Splits at single commas.
fn split(text: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c == ',' && chars.next_if_eq(&',').is_none() {
            fields.push(String::new());
        } else if let Some(field) = fields.last_mut() {
            field.push(c);
        }
    }
    fields
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_split_at_single_commas() {
        let device = DeviceArgument::parse("a/b.so,disk=x,,y=z,readonly,id=root").unwrap();
        assert_eq!(device.plugin, "a/b.so");
        assert_eq!(device.id.as_deref(), Some("root"));
        assert_eq!(device.pairs().collect::<Vec<_>>(), [("disk", "x,y=z"), ("readonly", "on")]);
        assert!(DeviceArgument::parse("pl011,help").unwrap().help);
        assert_eq!(device.isolate, Isolation::Off);
        for (text, wanted) in [("a,isolate", Isolation::On), ("a,isolate=required", Isolation::Required)] {
            assert_eq!(DeviceArgument::parse(text).unwrap().isolate, wanted);
        }
    }

    #[test]
    fn broken_arguments_say_what_is_missing() {
        let error = |text| DeviceArgument::parse(text).unwrap_err();
        assert_eq!(error(""), "the plugin is missing: write --device PLUGIN[,key=value...]");
        assert_eq!(error("a,k=v,"), "empty option in 'a,k=v,'");
        assert_eq!(error("a,id=x y"), "id 'x y': use 1 to 64 letters, digits, '-', '_' or '.'");
        assert_eq!(error("a,isolate=maybe"), "option 'isolate': 'maybe' is not one of off, on, required");
        assert_eq!(error("a,id=x,id=y"), "option 'id' is given twice");
    }
}
