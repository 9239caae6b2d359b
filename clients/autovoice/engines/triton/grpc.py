"""Triton's gRPC protocol."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped]
from tritonclient.grpc import service_pb2, service_pb2_grpc

from autovoice.address import API_KEY_HEADER, GRPC_HEADER_PREFIX, ServerAddress
from autovoice.engines.triton.wire import (
    DURATIONS,
    Duration,
    FailureKind,
    ModelStatistics,
    TransportError,
    WireRequest,
    WireResponse,
    WireTensor,
    newest,
    parse_version,
    refine_kind,
)

_ANY_SIZE = 2**31 - 1
_CHANNEL_OPTIONS = [
    ("grpc.max_send_message_length", _ANY_SIZE),
    ("grpc.max_receive_message_length", _ANY_SIZE),
    # A server that comes back is noticed within a second or two, not the two minutes of the default.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # Pipelines do not wait for each other's reconnections.
    ("grpc.use_local_subchannel_pool", 1),
    # The address is where the server is, whatever http_proxy says.
    ("grpc.enable_http_proxy", 0),
]
_KINDS = {
    grpc.StatusCode.UNAVAILABLE: FailureKind.UNREACHABLE,
    grpc.StatusCode.RESOURCE_EXHAUSTED: FailureKind.BUSY,
    grpc.StatusCode.DEADLINE_EXCEEDED: FailureKind.TIMEOUT,
    grpc.StatusCode.INVALID_ARGUMENT: FailureKind.REFUSED,
    grpc.StatusCode.OUT_OF_RANGE: FailureKind.REFUSED,
    grpc.StatusCode.UNIMPLEMENTED: FailureKind.REFUSED,
    grpc.StatusCode.NOT_FOUND: FailureKind.UNKNOWN_MODEL,
    grpc.StatusCode.UNAUTHENTICATED: FailureKind.FORBIDDEN,
    grpc.StatusCode.PERMISSION_DENIED: FailureKind.FORBIDDEN,
}


class GrpcTransport:
    """One HTTP/2 connection that all threads share.

    Args:
        address: the server's.
        api_key: sent with every call; None for none.
        root_certificates: PEM file of the authorities to trust; None for the usual ones.
        client_certificate: PEM file that identifies this client; None for none.
        client_key: its key.
    """

    def __init__(
        self,
        address: ServerAddress,
        *,
        api_key: str | None = None,
        root_certificates: Path | None = None,
        client_certificate: Path | None = None,
        client_key: Path | None = None,
    ) -> None:
        if address.tls:
            credentials = grpc.ssl_channel_credentials(
                *(
                    None if path is None else path.read_bytes()
                    for path in (root_certificates, client_key, client_certificate)
                )
            )
            self._channel = grpc.secure_channel(address.authority, credentials, _CHANNEL_OPTIONS)
        else:
            self._channel = grpc.insecure_channel(address.authority, _CHANNEL_OPTIONS)
        self._service = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._metadata = () if api_key is None else ((GRPC_HEADER_PREFIX + API_KEY_HEADER, api_key),)

    def infer(self, request: WireRequest, timeout: float | None) -> WireResponse:
        """Send a request; see `Transport.infer`."""
        message = service_pb2.ModelInferRequest(
            model_name=request.model,
            id=request.id,
            raw_input_contents=[bytes(tensor.data) for tensor in request.tensors],
        )
        for tensor in request.tensors:
            message.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        for name, value in request.parameters.items():
            if isinstance(value, bool):
                message.parameters[name].bool_param = value
            else:
                message.parameters[name].int64_param = value
        answer = self._call(self._service.ModelInfer, message, timeout, tuple(request.headers.items()))
        if len(answer.outputs) != len(answer.raw_output_contents):
            raise TransportError(FailureKind.BROKEN, "outputs came without their contents")
        return WireResponse(
            answer.id,
            tuple(
                WireTensor(output.name, output.datatype, tuple(output.shape), data)
                for output, data in zip(answer.outputs, answer.raw_output_contents, strict=True)
            ),
            parse_version(answer.model_version),
        )

    def models(self, timeout: float | None) -> dict[str, int]:
        """Names and versions of the models; see `Transport.models`."""
        answer = self._call(self._service.ModelStatistics, service_pb2.ModelStatisticsRequest(), timeout)
        return newest((model.name, model.version) for model in answer.model_stats)

    def model_config(self, model: str, timeout: float | None) -> Any:
        """The model's config; see `Transport.model_config`."""
        message = service_pb2.ModelConfigRequest(name=model)
        return self._call(self._service.ModelConfig, message, timeout).config

    def close(self) -> None:
        """Close the connection; calls under way end with an error."""
        self._channel.close()

    def _call(
        self, method: Any, message: Any, timeout: float | None, headers: tuple[tuple[str, str], ...] = ()
    ) -> Any:
        try:
            return method(message, timeout=timeout, metadata=(*self._metadata, *headers))
        except grpc.RpcError as error:
            reason = (error.details() or error.code().name).strip().splitlines()[0]
            kind = refine_kind(_KINDS.get(error.code(), FailureKind.BROKEN), reason)
            raise TransportError(kind, reason) from error
        except ValueError as error:  # a channel that was closed
            raise TransportError(FailureKind.BROKEN, str(error)) from error

    def ready(self, timeout: float | None) -> bool:
        """Whether the server is ready; see `Transport.ready`."""
        return bool(self._call(self._service.ServerReady, service_pb2.ServerReadyRequest(), timeout).ready)

    def model_ready(self, model: str, timeout: float | None) -> bool:
        """Whether a model is ready; see `Transport.model_ready`."""
        message = service_pb2.ModelReadyRequest(name=model)
        return bool(self._call(self._service.ModelReady, message, timeout).ready)

    def server_version(self, timeout: float | None) -> tuple[str, str]:
        """Name and version; see `Transport.server_version`."""
        answer = self._call(self._service.ServerMetadata, service_pb2.ServerMetadataRequest(), timeout)
        return answer.name, answer.version

    def statistics(self, timeout: float | None) -> list[ModelStatistics]:
        """What each model did; see `Transport.statistics`."""
        answer = self._call(self._service.ModelStatistics, service_pb2.ModelStatisticsRequest(), timeout)
        found = []
        for model in answer.model_stats:
            spent = {name: getattr(model.inference_stats, name) for name in DURATIONS}
            found.append(
                ModelStatistics(
                    model.name,
                    int(model.version),
                    model.inference_count,
                    model.execution_count,
                    {name: Duration(each.count, each.ns) for name, each in spent.items()},
                )
            )
        return found


TRANSPORT = GrpcTransport
