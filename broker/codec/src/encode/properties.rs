//! The property blocks of all packets but PUBLISH.

use super::{
    publish::message,
    sink::{Properties, Sink},
};
use crate::{
    Auth, ConnAckProperties, ConnectProperties, DisconnectProperties, QoS, ReasonProperties,
    Subscribe, Unsubscribe, Will, property as id,
};

impl Properties for ConnectProperties {
    fn write<S: Sink>(&self, s: &mut S) {
        s.property_u32(id::SESSION_EXPIRY_INTERVAL, self.session_expiry_s);
        s.property_u16(id::RECEIVE_MAXIMUM, self.receive_maximum);
        s.property_u32(id::MAXIMUM_PACKET_SIZE, self.maximum_packet_size);
        s.property_u16(id::TOPIC_ALIAS_MAXIMUM, self.topic_alias_maximum);
        s.property_bool(
            id::REQUEST_RESPONSE_INFORMATION,
            self.request_response_information,
        );
        s.property_bool(
            id::REQUEST_PROBLEM_INFORMATION,
            self.request_problem_information,
        );
        s.user_properties(&self.user_properties);
        s.property_text(
            id::AUTHENTICATION_METHOD,
            self.authentication_method.as_ref(),
        );
        s.property_binary(id::AUTHENTICATION_DATA, self.authentication_data.as_ref());
    }
}

impl Properties for Will {
    fn write<S: Sink>(&self, s: &mut S) {
        s.property_u32(id::WILL_DELAY_INTERVAL, self.delay_s);
        if let Some(properties) = &self.properties {
            message(properties, s);
        }
    }
}

impl Properties for ConnAckProperties {
    fn write<S: Sink>(&self, s: &mut S) {
        s.property_u32(id::SESSION_EXPIRY_INTERVAL, self.session_expiry_s);
        s.property_u16(id::RECEIVE_MAXIMUM, self.receive_maximum);
        // QoS 2 is said by leaving the property out (§3.2.2.3.4).
        let maximum_qos = self
            .maximum_qos
            .filter(|q| *q < QoS::ExactlyOnce)
            .map(|q| q as u8);
        s.property_u8(id::MAXIMUM_QOS, maximum_qos);
        s.property_bool(id::RETAIN_AVAILABLE, self.retain_available);
        s.property_u32(id::MAXIMUM_PACKET_SIZE, self.maximum_packet_size);
        s.property_text(
            id::ASSIGNED_CLIENT_IDENTIFIER,
            self.assigned_client_id.as_ref(),
        );
        s.property_u16(id::TOPIC_ALIAS_MAXIMUM, self.topic_alias_maximum);
        s.property_text(id::REASON_STRING, self.reason_string.as_ref());
        s.user_properties(&self.user_properties);
        s.property_bool(
            id::WILDCARD_SUBSCRIPTION_AVAILABLE,
            self.wildcard_subscription_available,
        );
        s.property_bool(
            id::SUBSCRIPTION_IDENTIFIER_AVAILABLE,
            self.subscription_identifiers_available,
        );
        s.property_bool(
            id::SHARED_SUBSCRIPTION_AVAILABLE,
            self.shared_subscription_available,
        );
        s.property_u16(id::SERVER_KEEP_ALIVE, self.server_keep_alive_s);
        s.property_text(id::RESPONSE_INFORMATION, self.response_information.as_ref());
        s.property_text(id::SERVER_REFERENCE, self.server_reference.as_ref());
        s.property_text(
            id::AUTHENTICATION_METHOD,
            self.authentication_method.as_ref(),
        );
        s.property_binary(id::AUTHENTICATION_DATA, self.authentication_data.as_ref());
    }
}

impl Properties for ReasonProperties {
    fn write<S: Sink>(&self, s: &mut S) {
        s.property_text(id::REASON_STRING, self.reason_string.as_ref());
        s.user_properties(&self.user_properties);
    }
}

impl Properties for Subscribe {
    fn write<S: Sink>(&self, s: &mut S) {
        if let Some(value) = self.subscription_id {
            s.u8(id::SUBSCRIPTION_IDENTIFIER);
            s.varint(value as usize);
        }
        s.user_properties(&self.user_properties);
    }
}

impl Properties for Unsubscribe {
    fn write<S: Sink>(&self, s: &mut S) {
        s.user_properties(&self.user_properties);
    }
}

impl Properties for DisconnectProperties {
    fn write<S: Sink>(&self, s: &mut S) {
        s.property_u32(id::SESSION_EXPIRY_INTERVAL, self.session_expiry_s);
        s.property_text(id::REASON_STRING, self.reason_string.as_ref());
        s.user_properties(&self.user_properties);
        s.property_text(id::SERVER_REFERENCE, self.server_reference.as_ref());
    }
}

impl Properties for Auth {
    fn write<S: Sink>(&self, s: &mut S) {
        s.property_text(
            id::AUTHENTICATION_METHOD,
            self.authentication_method.as_ref(),
        );
        s.property_binary(id::AUTHENTICATION_DATA, self.authentication_data.as_ref());
        s.property_text(id::REASON_STRING, self.reason_string.as_ref());
        s.user_properties(&self.user_properties);
    }
}
