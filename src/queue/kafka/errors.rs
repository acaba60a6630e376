//! What a Kafka error means, by its code and never by its text.
//!
//! `RDKafkaErrorCode` has librdkafka's own codes (negative) and the protocol's (Kafka protocol guide, "Error Codes").

use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};

use crate::error::{Error, ErrorKind};
use crate::halt::HaltCode;

/// The code in an error, if it has one.
pub(super) fn code_of(error: &KafkaError) -> Option<Code> {
    match error {
        // rdkafka keeps this one to itself in `rdkafka_error_code`.
        KafkaError::AdminOp(code) => Some(*code),
        other => other.rdkafka_error_code(),
    }
}

/// The error of a call. `doing` says what was tried, with the topic's name.
pub(super) fn error(doing: &str, error: &KafkaError) -> Error {
    match error {
        // The value may be a secret, and librdkafka's sentence may quote it.
        KafkaError::ClientConfig(_, _, key, _) => Error::new(
            ErrorKind::Config,
            format!("[queue.kafka] {key}: librdkafka does not know this property, or not this value"),
        ),
        KafkaError::ClientCreation(text) => Error::new(ErrorKind::Config, format!("[queue.kafka]: {text}")),
        KafkaError::Nul(_) => Error::new(ErrorKind::Config, format!("{doing}: a name holds a NUL byte")),
        other => match code_of(other) {
            Some(code) => coded(doing, code),
            None => Error::new(ErrorKind::Unexpected, format!("{doing}: {other}")),
        },
    }
}

/// The error of a code.
pub(super) fn coded(doing: &str, code: Code) -> Error {
    Error::new(kind(code), format!("{doing}: {code}{}", advice(code)))
}

/// True for what time or another broker mends.
pub(super) fn passes(code: Code) -> bool {
    matches!(kind(code), ErrorKind::Connection | ErrorKind::Busy)
}

/// True when the answer was that there is no such topic or partition.
pub(super) fn no_topic(code: Code) -> bool {
    matches!(
        code,
        Code::UnknownTopicOrPartition
            | Code::UnknownTopic
            | Code::UnknownPartition
            | Code::UnknownTopicId
            | Code::ResourceNotFound
    )
}

/// The one table from code to kind, meaning by meaning. What is in none halts.
pub(super) fn kind(code: Code) -> ErrorKind {
    match code {
        code if denied(code) => ErrorKind::Halt(HaltCode::QueueDenied),
        code if lost(code) => ErrorKind::Halt(HaltCode::QueueLost),
        code if no_topic(code) => ErrorKind::Halt(HaltCode::NotInitialized),
        code if refused_request(code) => ErrorKind::Config,
        Code::BadMessage | Code::BadCompression | Code::InvalidMessage => ErrorKind::Corrupt,
        code if not_now(code) => ErrorKind::Busy,
        code if away(code) || moved(code) || lost_its_place(code) => ErrorKind::Connection,
        _ => ErrorKind::Unexpected,
    }
}

/// Who we are, or what we may do.
fn denied(code: Code) -> bool {
    matches!(
        code,
        Code::Authentication
            | Code::SaslAuthenticationFailed
            | Code::UnsupportedSASLMechanism
            | Code::IllegalSASLState
            | Code::SecurityDisabled
            | Code::TopicAuthorizationFailed
            | Code::GroupAuthorizationFailed
            | Code::ClusterAuthorizationFailed
            | Code::TransactionalIdAuthorizationFailed
            | Code::DelegationTokenAuthorizationFailed
            | Code::DelegationTokenExpired
    )
}

/// What was to be read is not there any more. auto.offset.reset=error turns an offset out of range into the second.
fn lost(code: Code) -> bool {
    matches!(code, Code::OffsetOutOfRange | Code::AutoOffsetReset | Code::LogTruncation | Code::NoOffset)
}

/// A size, a name, a setting or a version that the broker does not take, however often it is asked.
fn refused_request(code: Code) -> bool {
    matches!(
        code,
        Code::MessageSizeTooLarge
            | Code::MessageBatchTooLarge
            | Code::InvalidMessageSize
            | Code::InvalidTopic
            | Code::InvalidConfig
            | Code::InvalidPartitions
            | Code::InvalidReplicationFactor
            | Code::InvalidReplicaAssignment
            | Code::InvalidRequest
            | Code::InvalidRequiredAcks
            | Code::InvalidRecord
            | Code::InvalidGroupId
            | Code::InvalidArgument
            | Code::PolicyViolation
            | Code::TopicDeletionDisabled
            | Code::UnsupportedCompressionType
            | Code::UnsupportedFeature
            | Code::UnsupportedVersion
            | Code::UnsupportedForMessageFormat
    )
}

/// The cluster is there and does not take it now.
fn not_now(code: Code) -> bool {
    matches!(
        code,
        Code::NotEnoughReplicas
            | Code::NotEnoughReplicasAfterAppend
            | Code::ISRInsufficient
            | Code::ThrottlingQuotaExceeded
            | Code::QueueFull
            | Code::ReassignmentInProgress
            | Code::CoordinatorLoadInProgress
    )
}

/// Nobody answers, or not in time.
fn away(code: Code) -> bool {
    matches!(
        code,
        // TLS handshakes fail for a wrong certificate and for a broker that goes away in the middle; the text says which.
        Code::SSL
            | Code::BrokerTransportFailure
            | Code::AllBrokersDown
            | Code::Resolve
            | Code::BrokerDestroy
            | Code::DestroyBroker
            | Code::UnknownBroker
            | Code::MessageTimedOut
            | Code::TimedOutQueue
            | Code::OperationTimedOut
            | Code::RequestTimedOut
            | Code::WaitingForCoordinator
            | Code::WaitCache
            | Code::Retry
            | Code::InProgress
            | Code::PreviousInProgress
            | Code::NodeUpdate
            | Code::Outdated
            | Code::Interrupted
            | Code::NetworkException
    )
}

/// The broker that answers does not lead, does not coordinate, or has lost its storage: another one does, or will.
fn moved(code: Code) -> bool {
    matches!(
        code,
        Code::LeaderNotAvailable
            | Code::NotLeaderForPartition
            | Code::BrokerNotAvailable
            | Code::ReplicaNotAvailable
            | Code::PreferredLeaderNotAvailable
            | Code::EligibleLeadersNotAvailable
            | Code::NotController
            | Code::StaleControllerEpoch
            | Code::StaleBrokerEpoch
            | Code::CoordinatorNotAvailable
            | Code::NotCoordinator
            | Code::KafkaStorageError
            | Code::LogDirNotFound
            | Code::FetchSessionIdNotFound
            | Code::InvalidFetchSessionEpoch
            | Code::ListenerNotFound
            | Code::FencedLeaderEpoch
            | Code::UnknownLeaderEpoch
            | Code::OffsetNotAvailable
            | Code::RebootstrapRequired
    )
}

/// A producer that lost its place. It is dead; a new one reads the state anew.
fn lost_its_place(code: Code) -> bool {
    matches!(
        code,
        Code::Fatal
            | Code::GaplessGuarantee
            | Code::Inconsistent
            | Code::OutOfOrderSequenceNumber
            | Code::UnknownProducerId
            | Code::InvalidProducerEpoch
            | Code::InvalidProducerIdMapping
            | Code::ProducerFenced
            | Code::Fenced
            | Code::PurgeQueue
            | Code::PurgeInflight
    )
}

fn advice(code: Code) -> &'static str {
    match kind(code) {
        ErrorKind::Halt(HaltCode::QueueDenied) => match code {
            Code::TopicAuthorizationFailed | Code::GroupAuthorizationFailed | Code::ClusterAuthorizationFailed => {
                "; `millstream check` prints the kafka-acls.sh command"
            }
            _ => "; mend the sasl.* properties under [queue.kafka]",
        },
        ErrorKind::Config if matches!(code, Code::MessageSizeTooLarge | Code::MessageBatchTooLarge) => {
            "; raise max.message.bytes of the topic, or lower message.max.bytes under [queue.kafka]"
        }
        _ if code == Code::InvalidReplicationFactor => "; there are fewer brokers than replication_factor asks for",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rdkafka::types::RDKafkaConfRes;

    #[test]
    fn a_refused_property_is_named_without_its_value() {
        let refused = KafkaError::ClientConfig(
            RDKafkaConfRes::RD_KAFKA_CONF_INVALID,
            "Invalid value \"canary\" for configuration property".into(),
            "sasl.password".into(),
            "canary".into(),
        );
        let error = error("connecting", &refused);
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(!format!("{error:?}").contains("canary"));
        assert!(error.to_string().contains("sasl.password"));
    }

    #[test]
    fn what_time_mends_passes_and_what_means_loss_does_not() {
        for code in [Code::AllBrokersDown, Code::NotEnoughReplicas, Code::LeaderNotAvailable, Code::GaplessGuarantee] {
            assert!(passes(code), "{code:?}");
        }
        for code in [Code::OffsetOutOfRange, Code::AutoOffsetReset, Code::LogTruncation] {
            assert_eq!(kind(code), ErrorKind::Halt(HaltCode::QueueLost), "{code:?}");
        }
        assert_eq!(kind(Code::InvalidTransactionTimeout), ErrorKind::Unexpected, "what is not known halts");
    }
}
