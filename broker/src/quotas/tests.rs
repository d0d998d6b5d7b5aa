use super::*;
use std::fs;

/// A state folder of a test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let folder =
            std::env::temp_dir().join(format!("headgate-quotas-{}-{name}", std::process::id()));
        fs::create_dir_all(&folder).expect("a folder");
        Self(folder)
    }

    fn book(&self) -> QuotaBook {
        let mut config = QuotaConfig::default();
        let sensors = config.class_mut("sensors").expect("a class");
        sensors.messages_per_second = 10;
        QuotaBook::load(&config, &self.0).expect("the folder is right")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn value(book: &QuotaBook, class: &str, key: &str) -> (String, &'static str) {
    let status = book.status();
    let class = status.iter().find(|c| c.name == class).expect("a class");
    let value = &class.values[key];
    (value.value.clone(), value.by)
}

fn no_kernel(_: u32, _: Record) -> Result<(), String> {
    Ok(())
}

fn pair(key: &str, value: &str) -> (String, String) {
    (key.to_owned(), value.to_owned())
}

#[test]
fn changes_are_in_force_at_once_and_after_a_restart() {
    let folder = Folder::new("restart");
    let book = folder.book();
    let of = |book: &QuotaBook, key| value(book, "sensors", key);
    let configured = ("10".to_owned(), "configuration");
    assert_eq!(of(&book, "messages_per_second"), configured);
    let changes = [
        pair("messages_per_second", "5"),
        pair("above", "refuse"),
        pair("when_full", "block"),
    ];
    book.set("sensors", &changes, no_kernel).expect("right");
    let changed = ("5".to_owned(), "ctl");
    assert_eq!(of(&book, "messages_per_second"), changed);
    let limits = book.limits()[2];
    assert_eq!(
        (limits.messages_per_s, limits.above, limits.when_full),
        (5, AboveQuota::Refuse, headgate_core::WhenFull::Block)
    );
    let again = folder.book();
    assert_eq!(again.limits(), book.limits());
    assert_eq!(of(&again, "messages_per_second"), changed);
    assert_eq!(of(&again, "connections"), ("0".to_owned(), "configuration"));
    again.reset("sensors", no_kernel).expect("right");
    assert_eq!(of(&again, "messages_per_second"), configured);
    assert_eq!(of(&folder.book(), "messages_per_second"), configured);
}

#[test]
fn a_change_that_is_wrong_in_part_changes_nothing() {
    let folder = Folder::new("wrong");
    let book = folder.book();
    let before = book.status();
    let wrong = [
        pair("connections", "5"),
        pair("messages_per_second", "many"),
    ];
    let error = book.set("sensors", &wrong, no_kernel).expect_err("wrong");
    assert!(error.to_string().contains("`many`"), "{error}");
    let error = book
        .set("guests", &[pair("connections", "5")], no_kernel)
        .expect_err("no class");
    assert!(
        error.to_string().contains("default, suspect, sensors"),
        "{error}"
    );
    assert_eq!(book.status(), before);
    assert_eq!(folder.book().status(), before);
}

#[test]
fn what_means_nothing_any_more_is_left_alone() {
    let folder = Folder::new("stale");
    let kept = r#"{"edits": {"gone": {"connections": "1"}, "sensors": {"no_key": "1", "connections": "3"}}}"#;
    fs::write(folder.0.join("quotas.json"), kept).expect("a file");
    let book = folder.book();
    assert_eq!(
        value(&book, "sensors", "connections"),
        ("3".to_owned(), "ctl")
    );
    fs::write(folder.0.join("quotas.json"), "7").expect("a file");
    let error = QuotaBook::load(&QuotaConfig::default(), &folder.0).expect_err("no object");
    assert!(error.to_string().contains("quotas.json"), "{error}");
}

#[test]
fn what_is_written_into_the_map_is_in_force_until_the_next_start() {
    let folder = Folder::new("map");
    let book = folder.book();
    let mut map = book.records();
    assert_eq!(map.len(), 3);
    assert_eq!(map[2].1.name(), "sensors");
    assert_eq!(book.follow(|| Some(map.clone())), Vec::<String>::new());
    map[2].1.messages_per_second = 7;
    map[0].1.connections = u64::MAX;
    let edits = book.follow(|| Some(map.clone()));
    assert_eq!(
        edits,
        [
            "default.connections: 0 -> 4294967295",
            "sensors.messages_per_second: 10 -> 7"
        ]
    );
    assert_eq!(book.limits()[2].messages_per_s, 7);
    let of_map = ("7".to_owned(), "map");
    assert_eq!(value(&book, "sensors", "messages_per_second"), of_map);
    assert_eq!(book.follow(|| Some(map.clone())), Vec::<String>::new());
    assert_eq!(book.follow(|| None), Vec::<String>::new());
    // A change by ctl is written into the map before anybody can take it for an edit.
    let mut written = None;
    let write = |number, record| {
        written = Some((number, record));
        Ok(())
    };
    book.set("sensors", &[pair("connections", "3")], write)
        .expect("right");
    let (number, record) = written.expect("it was written");
    assert_eq!(
        (number, record.connections, record.messages_per_second),
        (2, 3, 7)
    );
    let refused = |_, _| Err("no".to_owned());
    let changes = [pair("connections", "4")];
    assert!(book.set("sensors", &changes, refused).is_err());
    assert_eq!(value(&book, "sensors", "connections").0, "3");
    assert_eq!(
        value(&folder.book(), "sensors", "messages_per_second").0,
        "10"
    );
}

#[test]
fn what_was_written_into_a_map_that_was_left_behind_is_told() {
    let folder = Folder::new("found");
    let book = folder.book();
    let mut map = book.records();
    assert_eq!(
        book.found(&map),
        Vec::<String>::new(),
        "nothing is known of it"
    );
    book.save().expect("it can be written");
    map[2].1.messages_per_second = 99;
    // Another configuration is nobody's edit.
    let mut config = QuotaConfig::default();
    config
        .class_mut("sensors")
        .expect("a class")
        .messages_per_second = 50;
    let next = QuotaBook::load(&config, &folder.0).expect("the folder is right");
    assert_eq!(next.found(&map), ["sensors.messages_per_second: 10 -> 99"]);
    assert_eq!(value(&next, "sensors", "messages_per_second").0, "50");
}
