"""What data, a setting and a method may say."""

from moebench.config import BaseData, BaseMethod, BaseSetting, Optimisation, Share

TASKS, METRICS = ("noisy",), ("accuracy",)


class Data(BaseData):
    points: int
    noise: Share


class Setting(BaseSetting):
    experts: int
    pretrain: Optimisation


class Method(BaseMethod):
    router: str
    source = property(lambda self: ("router", self.router))
