//! Which machines an image is for.

use serde::Deserialize;
use std::fmt;
use std::str::FromStr;

/// An operating system, a processor, and perhaps a variant of it, by the names that Go has for them.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Platform {
    /// `linux`.
    pub os: String,
    /// `amd64`, `arm64` and so on.
    pub architecture: String,
    /// `v7` and the like; `None`: any.
    #[serde(default)]
    pub variant: Option<String>,
}

impl Platform {
    /// That of the machine that this runs on.
    pub fn host() -> Platform {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "x86" => "386",
            "powerpc64" => "ppc64le",
            "loongarch64" => "loong64",
            other => other,
        };
        Platform { os: "linux".to_owned(), architecture: architecture.to_owned(), variant: None }
    }

    /// Whether an image for `self` is wanted where `wanted` is.
    pub(crate) fn serves(&self, wanted: &Platform) -> bool {
        let variant = |platform: &Platform| {
            let variant = platform.variant.clone().filter(|variant| !variant.is_empty());
            // What is left out is the first variant that there was.
            variant.or_else(|| (platform.architecture == "arm64").then(|| "v8".to_owned()))
        };
        self.os == wanted.os
            && self.architecture == wanted.architecture
            && (wanted.variant.is_none() || variant(self) == variant(wanted))
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) if !variant.is_empty() => write!(f, "/{variant}"),
            _ => Ok(()),
        }
    }
}

impl FromStr for Platform {
    type Err = String;

    /// Reads `OS/ARCHITECTURE[/VARIANT]`.
    fn from_str(text: &str) -> Result<Platform, String> {
        let mut parts = text.split('/');
        let (os, architecture, variant) = (parts.next(), parts.next(), parts.next());
        match (os, architecture) {
            (Some(os), Some(architecture))
                if !os.is_empty()
                    && !architecture.is_empty()
                    && variant != Some("")
                    && parts.next().is_none() =>
            {
                let variant = variant.map(str::to_owned);
                Ok(Platform { os: os.to_owned(), architecture: architecture.to_owned(), variant })
            }
            _ => {
                Err("a platform is OS/ARCHITECTURE or OS/ARCHITECTURE/VARIANT, such as linux/arm64"
                    .to_owned())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variants_count_where_they_are_asked_for() {
        let serves =
            |have: &str, wanted: &str| have.parse::<Platform>().unwrap().serves(&wanted.parse().unwrap());
        for (have, wanted) in [
            ("linux/arm64", "linux/arm64/v8"),
            ("linux/arm64/v8", "linux/arm64"),
            ("linux/arm/v7", "linux/arm"),
            ("linux/arm/v6", "linux/arm/v6"),
        ] {
            assert!(serves(have, wanted), "{have} {wanted}");
        }
        for (have, wanted) in
            [("linux/arm", "linux/arm64"), ("linux/arm/v6", "linux/arm/v7"), ("windows/amd64", "linux/amd64")]
        {
            assert!(!serves(have, wanted), "{have} {wanted}");
        }
        for text in ["", "linux", "linux/", "/amd64", "linux/arm/v7/x", "linux/arm/"] {
            assert!(text.parse::<Platform>().is_err(), "{text}");
        }
        assert_eq!(Platform::host().os, "linux");
    }
}
