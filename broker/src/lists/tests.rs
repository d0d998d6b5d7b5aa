use super::*;
use proptest::prelude::*;
use std::fs;

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let folder =
            std::env::temp_dir().join(format!("headgate-lists-{}-{name}", std::process::id()));
        fs::create_dir_all(&folder).expect("a folder");
        Self(folder)
    }

    fn lists(&self, config: &ListsConfig, now_s: u64) -> Lists {
        Lists::load(config, &self.0, now_s).expect("the folder is right")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn prefix(text: &str) -> Prefix {
    text.parse().expect("a prefix")
}

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

const DENY: (Action, &str) = (Action::Deny, "");
const ALLOW: (Action, &str) = (Action::Allow, "");

#[test]
fn the_longest_prefix_decides_until_it_expires() {
    let folder = Folder::new("longest");
    let lists = folder.lists(&ListsConfig::default(), 100);
    assert_eq!(lists.find(address("10.1.2.3"), 100), None);
    let ten_minutes = Some(Duration::from_secs(600));
    lists
        .add(prefix("10.0.0.0/8"), DENY, None, 100)
        .expect("room");
    lists
        .add(prefix("10.1.0.0/16"), ALLOW, ten_minutes, 100)
        .expect("room");
    assert_eq!(lists.find(address("10.1.2.3"), 699), Some(Action::Allow));
    assert_eq!(
        lists.find(address("::ffff:10.1.2.3"), 699),
        Some(Action::Allow)
    );
    assert_eq!(lists.find(address("10.1.2.3"), 700), Some(Action::Deny));
    assert_eq!(lists.find(address("11.1.2.3"), 100), None);
    assert_eq!(lists.find(address("a01::"), 100), None);
    assert_eq!(lists.take_changes().len(), 2);
    assert_eq!(lists.sweep(699), 0);
    assert_eq!(lists.sweep(700), 1);
    assert_eq!(lists.take_changes(), [(prefix("10.1.0.0/16"), None)]);
    lists
        .remove(prefix("10.0.0.0/8"), Action::Deny)
        .expect("it is there");
    assert_eq!(lists.find(address("10.1.2.3"), 800), None);
    let absent = lists.remove(prefix("10.0.0.0/8"), Action::Deny);
    assert_eq!(absent, Err(ListError::Absent(prefix("10.0.0.0/8"))));
}

#[test]
fn entries_survive_a_restart_until_they_expire() {
    let folder = Folder::new("restart");
    let config = ListsConfig {
        deny: vec!["192.0.2.0/24".to_owned()],
        ..ListsConfig::default()
    };
    let lists = folder.lists(&config, 100);
    let why = (Action::Deny, "scans");
    lists
        .add(
            prefix("10.0.0.0/8"),
            why,
            Some(Duration::from_secs(50)),
            100,
        )
        .expect("room");
    lists
        .add(prefix("2001:db8::/32"), ALLOW, None, 100)
        .expect("room");
    lists.save().expect("it can be written");
    let again = folder.lists(&config, 149);
    let sorted = |lists: &Lists| {
        let mut entries = lists.entries();
        entries.retain(|(_, entry)| entry.by != By::Configuration);
        entries
    };
    assert_eq!(sorted(&again), sorted(&lists));
    assert_eq!(
        again.take_changes().len(),
        3,
        "the kernel has to hear of all"
    );
    assert_eq!(again.entries().len(), 3);
    assert_eq!(folder.lists(&config, 150).entries().len(), 2);
    let configured = again.remove(prefix("192.0.2.0/24"), Action::Deny);
    assert_eq!(
        configured,
        Err(ListError::Configured(prefix("192.0.2.0/24")))
    );
}

#[test]
fn a_source_that_offends_too_often_is_denied_for_a_while() {
    let folder = Folder::new("automatic");
    let config = ListsConfig {
        malformed_per_minute: 3,
        failed_authentications_per_minute: 2,
        deny_for_s: 10,
        automatic_max: 2,
        allow: vec!["10.9.0.0/16".to_owned()],
        ..ListsConfig::default()
    };
    let lists = folder.lists(&config, 0);
    let report = |text: &str, offence, now_s| lists.report(address(text), offence, now_s);
    let malformed = |text, now_s| report(text, Offence::Malformed, now_s);
    assert!(!malformed("10.0.0.1", 100) && !malformed("10.0.0.1", 101));
    assert!(!malformed("10.0.0.1", 161), "another minute");
    assert!(!malformed("10.0.0.1", 162) && !malformed("10.0.0.2", 163));
    assert!(malformed("10.0.0.1", 163));
    assert_eq!(lists.find(address("10.0.0.1"), 172), Some(Action::Deny));
    assert_eq!(lists.find(address("10.0.0.2"), 172), None);
    assert_eq!(lists.find(address("10.0.0.1"), 173), None);
    // An IPv6 host has a whole /64.
    let failed = Offence::FailedAuthentication;
    assert!(!report("2001:db8::1", failed, 163));
    assert!(report("2001:db8::2", failed, 163));
    assert_eq!(lists.find(address("2001:db8::77"), 164), Some(Action::Deny));
    for _ in 0..9 {
        assert!(!report("10.9.1.1", failed, 164), "it is allowed");
        assert!(!report("10.0.0.3", failed, 164), "two are denied already");
    }
    let counts = lists.counts();
    assert_eq!(
        (counts.automatic_malformed, counts.automatic_failed),
        (1, 1)
    );
    assert_eq!(counts.automatic_full, 8);
    let entries = lists.entries();
    let entry = &entries
        .iter()
        .find(|(p, _)| *p == prefix("10.0.0.1/32"))
        .expect("listed")
        .1;
    assert_eq!(
        (entry.by, &*entry.text),
        (By::MalformedPackets, "3 within a minute")
    );
    assert_eq!(lists.sweep(173), 2);
    assert!(report("10.0.0.3", failed, 173));
}

#[test]
fn what_is_off_is_not_counted() {
    let folder = Folder::new("off");
    let config = ListsConfig {
        malformed_per_minute: 0,
        failed_authentications_per_minute: 0,
        ..ListsConfig::default()
    };
    let lists = folder.lists(&config, 0);
    for _ in 0..1_000 {
        assert!(!lists.report(address("10.0.0.1"), Offence::Malformed, 1));
    }
}

proptest! {
    /// Against a model that looks at every entry.
    #[test]
    fn lookups_find_the_longest(
        entries in prop::collection::btree_map(any::<(u8, u8)>(), any::<bool>(), 0..20),
        looked in any::<u8>(),
    ) {
        let folder = Folder::new("model");
        let lists = folder.lists(&ListsConfig::default(), 0);
        let mut model: BTreeMap<Prefix, Action> = BTreeMap::new();
        for ((octet, len), is_denied) in entries {
            let address = IpAddr::from([octet, octet, octet, octet]);
            let Some(prefix) = Prefix::new(address, len % 33) else { continue };
            let action = if is_denied { Action::Deny } else { Action::Allow };
            lists.add(prefix, (action, ""), None, 1).expect("room");
            model.insert(prefix, action);
        }
        let looked = IpAddr::from([looked; 4]);
        let expected = model
            .iter()
            .filter(|(prefix, _)| prefix.contains(looked))
            .max_by_key(|(prefix, _)| prefix.len())
            .map(|(_, action)| *action);
        prop_assert_eq!(lists.find(looked, 2), expected);
    }
}
