//! How a directory that is loaded is packed.

use mkimage::{Links, Packer};

/// How a directory that is loaded is packed; see [`mkimage::Packer`] for what each setting does.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Packing {
    /// What tensors are moved to multiples of, a power of two; 256 without it.
    pub align_tensors: Option<u64>,
    /// Pack byte for byte: no tensor is moved.
    pub exact: bool,
    /// Store files with the same contents once.
    pub dedupe: bool,
    /// What becomes of symbolic links.
    pub links: Links,
    /// Globs of what is left out.
    pub exclude: Vec<String>,
    /// Globs; with any, only what they match is packed.
    pub include: Vec<String>,
    /// Leave out other forms of weights that safetensors files have.
    pub weights_only: bool,
    /// Whether a link that leads out of the directory ends the load. It leads to what this process sees there, which
    /// need not be what the client sees.
    pub(crate) confined: bool,
}

impl Packing {
    /// Takes an option; `None` for a key that says something else.
    pub(crate) fn take(&mut self, key: &str, value: &str) -> Option<Result<(), String>> {
        match key {
            "dedupe" | "exact" | "weights-only" if !["0", "1"].contains(&value) => {
                return Some(Err("expected 0 or 1".into()));
            }
            "align-tensors" => match value.parse::<u64>().ok().filter(|bytes| bytes.is_power_of_two()) {
                Some(bytes) => self.align_tensors = Some(bytes),
                None => return Some(Err("expected a power of two".into())),
            },
            "exact" => self.exact = value == "1",
            "dedupe" => self.dedupe = value == "1",
            "links" => match value.parse() {
                Ok(links) => self.links = links,
                Err(why) => return Some(Err(why)),
            },
            "exclude" => self.exclude.push(value.to_owned()),
            "include" => self.include.push(value.to_owned()),
            "weights-only" => self.weights_only = value == "1",
            "confined" => self.confined = value == "1",
            _ => return None,
        }
        Some(Ok(()))
    }

    /// The settings that are not the default, as options of a load ([`crate::LoadOptions`]).
    pub fn texts(&self) -> Vec<String> {
        self.chosen().into_iter().map(|(key, value)| format!("{key}={value}")).collect()
    }

    /// The settings that are not the default, by their keys.
    fn chosen(&self) -> Vec<(&'static str, String)> {
        let usual = Self::default().options();
        self.options().into_iter().filter(|option| !usual.contains(option)).collect()
    }

    /// The first setting that is not the default, by its key.
    pub fn given(&self) -> Option<&'static str> {
        self.chosen().first().map(|(key, _)| *key)
    }

    /// As keys and values, for a helper.
    pub(crate) fn options(&self) -> Vec<(&'static str, String)> {
        let mut options = vec![("links", self.links.to_string())];
        options.extend(self.align_tensors.map(|bytes| ("align-tensors", bytes.to_string())));
        options.push(("exact", u8::from(self.exact).to_string()));
        options.push(("dedupe", u8::from(self.dedupe).to_string()));
        options.extend(self.exclude.iter().map(|glob| ("exclude", glob.clone())));
        options.extend(self.include.iter().map(|glob| ("include", glob.clone())));
        options.push(("weights-only", u8::from(self.weights_only).to_string()));
        options.push(("confined", u8::from(self.confined).to_string()));
        options
    }

    /// The packer with these settings.
    pub(crate) fn apply(&self, packer: Packer) -> Packer {
        let packer = packer.tensor_alignment(self.align_tensors).exact(self.exact).dedupe(self.dedupe);
        let packer = packer.links(self.links).confined(self.confined).weights_only(self.weights_only);
        let packer = self.exclude.iter().fold(packer, Packer::exclude);
        self.include.iter().fold(packer, Packer::include)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options() {
        let mut packing = Packing::default();
        for (key, value) in [
            ("links", "keep"),
            ("exclude", "*.bin"),
            ("exclude", "a=b"),
            ("include", "/x/"),
            ("weights-only", "1"),
            ("align-tensors", "4096"),
            ("dedupe", "1"),
        ] {
            packing.take(key, value).unwrap().unwrap();
        }
        assert_eq!((packing.links, packing.weights_only), (Links::Keep, true));
        assert_eq!((packing.align_tensors, packing.dedupe, packing.exact), (Some(4096), true, false));
        assert_eq!(
            (&packing.exclude[..], &packing.include[..]),
            (&["*.bin".into(), "a=b".into()][..], &["/x/".into()][..])
        );
        assert_eq!((packing.given(), Packing::default().given()), (Some("links"), None));
        assert_eq!(packing.chosen().len(), 7);
        let mut copy = Packing::default();
        for (key, value) in packing.options() {
            copy.take(key, &value).unwrap().unwrap();
        }
        assert_eq!(copy, packing);
        for (key, value) in [
            ("links", "all"),
            ("weights-only", "yes"),
            ("exact", "2"),
            ("align-tensors", "3"),
            ("dedupe", ""),
        ] {
            assert!(packing.take(key, value).unwrap().is_err(), "{key}={value}");
        }
        assert!(packing.take("into", "memfd").is_none());
    }
}
