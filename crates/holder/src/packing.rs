//! How a directory that is loaded is packed.

use mkimage::{Links, Packer};

/// The part of a load's options that says so.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Packing {
    align_tensors: Option<u64>,
    exact: bool,
    dedupe: bool,
    links: Links,
    exclude: Vec<String>,
    include: Vec<String>,
    weights_only: bool,
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
