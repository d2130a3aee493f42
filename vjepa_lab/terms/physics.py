"""Terms that ask latents to move as a physical system."""

import torch
from torch import Tensor, nn

from vjepa_lab.objective import View
from vjepa_lab.terms.common import Distance, mlp, positive
from vjepa_lab.values import check, number, whole


class Hamiltonian(Distance):
    """Halves q and p of z should move as a Hamiltonian system: dq/dt = dH/dp, dp/dt = -dH/dq (Sec. 3.5, one sentence in the paper).

    The residual |q[t+1] - ...| + |p[t+1] - ...| of one step from z[t], with H a tanh MLP of the token. H constant and z still is a trivial
    solution. Two methods differ:
    method   "symplectic": semi-implicit Euler, H at (q[t], p[t+1]); "euler": H at (q[t], p[t]); "leapfrog";
             "energy": |H[t+1] - H[t]|;
             "released": q' from H at (q[t], p[t]), then p' from H at (q', p[t]), and a GELU MLP (the paper's published code);
             "consistency": a leapfrog step of z[t] should reach q[t+1], which carries no gradient, in mean square (HamJEPA,
             arXiv:2605.20107). There H = |p|^2/2 + |q|^2/2 + 0.01 f(q), which cannot be constant
    dt       length of a token step
    toward   whose z[t+1] the step should reach: "student" or "teacher"
    conserve weight of (H after the step - H before it)^2 beside "consistency"; its H before carries no gradient
    hidden, layers   width and number of hidden layers of the MLP
    """

    METHODS = ("symplectic", "euler", "leapfrog", "energy", "consistency", "released")
    temporal = True
    method: str = "symplectic"
    dt: float = 1.0
    toward: str = "student"
    conserve: float = 0.0
    hidden: int = 256
    layers: int = 1

    def __post_init__(self):
        super().__post_init__()
        check(self, method=self.METHODS, toward=("student", "teacher"))
        whole(self, hidden=1, layers=1)
        positive(self, "dt")
        number(self, conserve=0)
        if self.conserve and self.method != "consistency":
            raise ValueError(f"{self!r}: conserve belongs to method='consistency'; method='energy' conserves H alone")

    def head(self, dim):
        if self.width(dim) % 2 and self.method != "energy":
            raise ValueError(f"{self!r} halves the channels into q and p: expected an even number of them, got {self.width(dim)} of {dim}")
        if self.method == "consistency":
            return Separable(self.width(dim) // 2, self.hidden, self.layers)
        return energy(self.width(dim), self.hidden, self.layers, nn.GELU if self.method == "released" else nn.Tanh)

    def error(self, view, head):  # [b t-1 h w]
        z, later = view.z[:, :-1], self.goal(view)
        if self.method == "energy":
            return (head(later) - head(z)).squeeze(-1).abs()
        (q, p), (q1, p1) = z.chunk(2, dim=-1), later.chunk(2, dim=-1)
        if self.method == "consistency":
            q_step, p_step = self.leap(head, q, p)
            error = self.over_channels((q_step - q1.detach()).square())
            if self.conserve:
                gap = head(torch.cat([q_step, p_step], dim=-1)) - head(z).detach()
                error = error + self.conserve * gap.squeeze(-1).square()
            return error
        if self.method == "leapfrog":
            q_step, p_step = self.leap(head, q, p)
        elif self.method == "released":
            q_step = q + self.dt * slope(head, q, p)[1]
            p_step = p - self.dt * slope(head, q_step, p)[0]
        else:
            dq, dp = slope(head, q, p1 if self.method == "symplectic" else p)
            q_step, p_step = q + self.dt * dp, p - self.dt * dq
        return self.over_channels((q1 - q_step).abs() + (p1 - p_step).abs())

    def goal(self, view: View) -> Tensor:
        return (view.z if self.toward == "student" else view.cut(view.h))[:, 1:]

    def leap(self, head: nn.Module, q: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
        """One leapfrog step: half a kick, a drift, half a kick."""
        half = p - self.dt / 2 * slope(head, q, p)[0]
        q_step = q + self.dt * slope(head, q, half)[1]
        return q_step, half - self.dt / 2 * slope(head, q_step, half)[0]


class Separable(nn.Module):
    """H = |p|^2/2 + |q|^2/2 + scale * f(q) of tokens [... 2d] -> [... 1], f a tanh MLP: kinetic energy and a potential with a floor."""

    def __init__(self, width: int, hidden: int, layers: int, scale: float = 0.01):
        super().__init__()
        self.potential, self.scale = energy(width, hidden, layers), scale

    def forward(self, x: Tensor) -> Tensor:
        return x.square().sum(-1, keepdim=True) / 2 + self.scale * self.potential(x.chunk(2, dim=-1)[0])


def energy(width: int, hidden: int, layers: int, activation: type[nn.Module] = nn.Tanh) -> nn.Sequential:
    """A smooth MLP [... width] -> [... 1] without a last bias: a constant added to an energy changes nothing."""
    network = mlp(width, *[hidden] * layers, 1, activation=activation)
    network[-1].register_parameter("bias", None)
    return network


def slope(head: nn.Module, q: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    """(dH/dq, dH/dp), differentiable themselves."""
    with torch.enable_grad():
        q, p = (x if x.requires_grad else x.detach().requires_grad_() for x in (q, p))
        return torch.autograd.grad(head(torch.cat([q, p], dim=-1)).sum(), (q, p), create_graph=True)
