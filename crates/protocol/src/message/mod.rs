//! Requests and replies of the holder's protocol.

#![forbid(unsafe_code)]

mod info;
mod reply;
mod request;
mod verb;

pub use info::{
    COPIES_MAX, DeviceCopy, ImageInfo, MemoryKind, NAME_MAX, PAGE_MAX, Role, SIGNATURE_MAX, is_valid_name,
};
pub use reply::{Refusal, Reply};
pub use request::{Request, Version};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DeviceUuid;

    fn info() -> ImageInfo {
        ImageInfo {
            name: "llama".into(),
            generation: 3,
            size: 1 << 40,
            kind: MemoryKind::SealedMemfd,
            page_size: 2 << 20,
            content_hash: Some([7; 32].into()),
            device: DeviceUuid::HOST,
            loaded: 1_800_000_000,
            attaches: 12,
            roles: vec![Role::Image, Role::Metadata],
            copies: vec![copy(5, 0), copy(7, 8)],
        }
    }

    fn copy(device: u8, placement: u8) -> DeviceCopy {
        DeviceCopy { device: [device; 16].into(), placement: [placement; 32], size: 2 << 20 }
    }

    fn version() -> Version {
        Version { name: "llama".into(), generation: 3, inode: 4 }
    }

    #[test]
    fn requests_come_back_and_cut_ones_do_not() {
        let requests = [
            Request::Attach { name: "a".into(), expect: Some([1; 32].into()) },
            Request::Current { name: "a".into() },
            Request::List { after: String::new() },
            Request::Load { name: "a".into(), replace: true, options: vec!["into=memfd".into()] },
            Request::Drop { name: "a".into() },
            Request::Stop,
            Request::Health,
            Request::Takeover,
            Request::TakeoverDone,
            Request::Keep { of: version(), copy: copy(3, 9) },
            Request::Copy { of: version(), device: [4; 16].into(), placement: [8; 32] },
            Request::Access { name: "a".into(), change: None },
            Request::Access { name: "a".into(), change: Some((vec![], vec![5, 6])) },
            Request::Watch { of: Version { name: "a".into(), generation: 3, inode: 4 } },
        ];
        for request in requests {
            let message = request.encode();
            assert_eq!(Request::decode(&message, request.descriptors()), Ok(request.clone()));
            for len in 0..message.len() {
                assert!(Request::decode(&message[..len], request.descriptors()).is_err());
            }
            assert!(Request::decode(&message, request.descriptors() + 1).is_err());
        }
    }

    #[test]
    fn replies_come_back_and_cut_ones_do_not() {
        let replies = [
            Reply::Ok,
            Reply::Error { refusal: Refusal::Limit, text: "no more".into() },
            Reply::Attached(info()),
            Reply::Current { generation: 9, inode: 8 },
            Reply::Page { images: vec![info(), info()], more: true },
            Reply::Progress { done: 1, total: 2 },
            Reply::Warning { text: "a link leads nowhere".into() },
            Reply::Loaded(info()),
            Reply::Health { pid: 1, images: 2, bytes: 3, uptime: 4 },
            Reply::Socket { next_generation: 5, supervised: true },
            Reply::Handover { info: info(), uids: vec![0, 1000], gids: vec![] },
            Reply::Copy { size: 6 },
            Reply::HandoverCopy(copy(3, 4)),
            Reply::Access { before: (vec![1], vec![]), after: (vec![], vec![2, 3]) },
        ];
        for reply in replies {
            let message = reply.encode();
            assert_eq!(Reply::decode(&message, reply.descriptors()), Ok(reply.clone()));
            for len in 0..message.len() {
                assert!(Reply::decode(&message[..len], reply.descriptors()).is_err());
            }
        }
    }

    #[test]
    fn a_page_of_the_longest_fits_a_message() {
        let mut longest = info();
        longest.name = "n".repeat(NAME_MAX);
        longest.copies = vec![copy(5, 6); COPIES_MAX];
        let page = Reply::Page { images: vec![longest; PAGE_MAX], more: true };
        assert!(page.encode().len() <= crate::wire::MESSAGE_MAX);
    }

    #[test]
    fn names() {
        for good in ["a", "llama-3.1_8b", "_x", "0"] {
            assert!(is_valid_name(good), "{good}");
        }
        for bad in ["", ".a", "-a", "a/b", "a b", "\u{e9}", &"a".repeat(129)] {
            assert!(!is_valid_name(bad), "{bad}");
        }
    }
}
