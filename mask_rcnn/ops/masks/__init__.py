"""Operations on masks and keypoints."""
